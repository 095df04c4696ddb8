"""Feedback on a role: its own turns and rewards, what later roles made of its words, and who is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_study import turn_of

from coterie.episodes import Edge, EdgeKind, Episode, ToolCall
from coterie.vocabulary import Reward, Task
from coterie_trainers.prompts.blame import blame
from coterie_trainers.prompts.feedback import LIMIT, role_feedback, whole_trace
from coterie_trainers.prompts.reach import reached
from coterie_trainers.prompts.study import Trial

PLAN = "Sort the list in descending order and then return only the first three of its elements."
CODE = "def top(values): return sorted(values)[:3]  # ascending, as I like it better"


def trial(score: float = 0.0, failure: str | None = None) -> Trial:
    return Trial("ca-1", Task("t1", "the task"), 0, "ro", score, failure)


def team(*, rewards: list[Reward] | None = None) -> Episode:
    """A planner, a coder that reads the plan, a reviewer that reads the code only, and a greeter that nobody reads."""
    turns = [
        turn_of("greeter", "say hello", "hello there", 0),
        turn_of("planner", "the three largest", PLAN, 1),
        turn_of("coder", f"Follow the plan:\n{PLAN}", CODE, 2),
        turn_of("reviewer", f"Is this right?\n{CODE}", "No: it takes the smallest.", 3),
    ]
    return Episode("ro", "at", "t1", turns, rewards=rewards or [Reward("ro", "at", 0.0)])


def test_words_are_followed_to_who_read_them_and_to_who_read_what_was_made_of_them() -> None:
    ways = [(way.turn.role, way.steps, way.through.role) for way in reached(team(), "planner")]
    assert ways == [("coder", 1, "planner"), ("reviewer", 2, "coder")]
    assert [way.turn.role for way in reached(team(), "coder")] == ["reviewer"]
    assert reached(team(), "greeter") == []
    assert reached(team(), "reviewer") == []


def test_what_two_roles_both_read_in_the_task_is_no_way_between_them() -> None:
    task = "A long task text of many words that every agent of the team is given."
    turns = [turn_of("a", task, task, 0), turn_of("b", task, "done", 1)]
    assert reached(Episode("ro", "at", "t", turns), "a") == []


def test_a_text_inside_json_is_recognised() -> None:
    said = "first line of it\nsecond line of it with more words"
    turns = [turn_of("a", "go", said, 0), turn_of("b", '{"note": "first line of it\\nsecond line of it"}', "ok", 1)]
    assert [way.turn.role for way in reached(Episode("ro", "at", "t", turns), "a")] == ["b"]


def test_turns_at_the_same_time_do_not_reach_each_other() -> None:
    turns = [turn_of("a", "go", "blue", 0), turn_of("b", "blue", "blue", 0)]
    assert reached(Episode("ro", "at", "t", turns), "a") == []


def test_an_edge_and_a_return_to_the_caller_show_where_rewritten_words_went() -> None:
    asked = turn_of("boss", "go", "asks", 0)
    worked = turn_of("worker", "please", "forty-two", 1, agent_path="boss/worker")
    after = turn_of("boss", "the result was put in other words", "fine", 2, call_id="ca-2", index=1)
    later = turn_of("boss", "something else", "bye", 3, call_id="ca-3", index=2)
    episode = Episode(
        "ro", "at", "t", [asked, worked, after, later], [Edge(EdgeKind.DELEGATION, "boss", "worker", 10**9)]
    )
    assert [(way.turn.call_id, way.steps) for way in reached(episode, "worker")] == [("ca-2", 1)]
    assert [way.turn.role for way in reached(episode, "boss")] == ["worker"]
    assert reached(replace(episode, edges=()), "boss") == []


def test_feedback_has_the_roles_own_turns_and_rewards_and_nothing_of_other_roles() -> None:
    rewards = [
        Reward("ro", "at", 0.0, explanation="wrong on 2 of 3 lists"),
        Reward("ro", "at", 0.25, name="style", role="coder", explanation="no type hints"),
        Reward("ro", "at", 0.75, name="depth", call_id="ca-planner-1", explanation="a clear plan"),
    ]
    coder = role_feedback(trial(), team(rewards=rewards), "coder")
    assert PLAN in coder.did
    assert CODE in coder.did
    assert "what the role is told" not in coder.did
    assert "hello there" not in str(coder)
    assert "wrong on 2 of 3 lists" in coder.judged
    assert "no type hints" in coder.judged
    assert "a clear plan" not in str(coder)
    planner = role_feedback(trial(), team(rewards=rewards), "planner")
    assert "depth = 0.75 for planner itself" in planner.judged
    assert "no type hints" not in planner.judged


def test_blame_tells_what_later_roles_made_of_it_and_how_they_were_judged() -> None:
    rewards = [Reward("ro", "at", 0.0, role="coder", explanation="the plan asks for the wrong order")]
    episode = replace(
        team(rewards=rewards),
        tool_calls=[ToolCall("run_tests", "coder", "coder", None, "{}", "", "2 failed", 2_600_000_000, 2_700_000_000)],
    )
    later = role_feedback(trial(), episode, "planner").later
    assert f"coder saw what it said, and said: {CODE}" in later
    assert "the plan asks for the wrong order" in later
    assert "coder's tool run_tests failed: 2 failed" in later
    assert "reviewer saw what coder made of it, and said: No: it takes the smallest." in later
    assert role_feedback(trial(), episode, "greeter").later == "No later role saw what it said."
    assert role_feedback(trial(), episode, "reviewer").later == "No other role acted after it."


def test_a_failed_rollout_and_a_role_that_was_not_reached_are_told() -> None:
    failed = replace(team().turns[2], error="context too long", text="", output=())
    episode = replace(team(), turns=[*team().turns[:2], failed])
    told = role_feedback(trial(failure="RuntimeError: the coder gave up"), episode, "coder")
    assert "The call failed: context too long" in told.did
    assert "the coder gave up" in told.judged
    assert "its call failed: context too long" in role_feedback(trial(), episode, "planner").later
    assert "was not reached" in role_feedback(trial(), episode, "reviewer").did


def test_a_conversation_is_told_once() -> None:
    first = turn_of("coder", "write it", "draft one", 0)
    messages = [*first.messages, *first.output, {"role": "tool", "content": "test failed"}]
    second = turn_of("coder", "", "draft two", 1, messages=messages, call_id="ca-2", index=1)
    did = role_feedback(trial(), Episode("ro", "at", "t", [first, second]), "coder").did
    assert did.count("write it") == 1
    assert did.count("draft one") == 1
    assert "tool: test failed" in did


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=30), st.integers(1500, 20_000))
def test_feedback_is_bounded_and_short_texts_stay_whole(lengths: list[int], limit: int) -> None:
    turns = [
        turn_of("coder", "x" * length, f"short {at}", at, call_id=f"ca-{at}", index=at)
        for at, length in enumerate(lengths)
    ]
    episode = Episode("ro", "at", "t", turns)
    for text in (
        str(role_feedback(trial(), episode, "coder", limit=limit)),
        whole_trace(trial(), episode, limit=limit),
    ):
        # What is told besides the texts: labels, and how much was left out.
        assert len(text) <= limit + 1500
        assert "short 0" in text
        assert f"short {len(lengths) - 1}" in text


def test_a_whole_trace_has_every_role_and_accuses_nobody() -> None:
    trace = whole_trace(trial(), team(rewards=[Reward("ro", "at", 0.0, role="coder", explanation="bad order")]))
    assert all(text in trace for text in ("hello there", PLAN, CODE, "bad order"))
    assert "saw" not in trace
    assert len(trace) < LIMIT


def test_a_role_judged_badly_is_blamed_more_than_one_judged_well() -> None:
    rewards = [Reward("ro", "at", 0.0), Reward("ro", "at", 0.1, role="coder"), Reward("ro", "at", 1.0, role="planner")]
    shares = blame(trial(), team(rewards=rewards), ["planner", "coder"])
    assert shares["coder"] > 5 * shares["planner"] > 0
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_role_that_nobody_judges_is_blamed_for_what_others_failed_on() -> None:
    shares = blame(trial(), team(rewards=[Reward("ro", "at", 0.0, role="coder")]), ["greeter", "planner", "coder"])
    assert shares["coder"] > shares["planner"] > 5 * shares["greeter"] > 0


def test_an_explanation_that_names_a_role_and_a_failed_call_are_evidence() -> None:
    named = blame(
        trial(), team(rewards=[Reward("ro", "at", 0.0, explanation="The planner forgot it")]), ["planner", "coder"]
    )
    assert named["planner"] > 5 * named["coder"]
    turns = [replace(turn, error="refused") if turn.role == "greeter" else turn for turn in team().turns]
    failed = blame(trial(), replace(team(), turns=turns), ["greeter", "planner", "coder"])
    assert failed["greeter"] > 5 * failed["coder"]


def test_without_evidence_all_share_what_was_lost() -> None:
    assert blame(trial(0.5), team(), ["planner", "coder"]) == {"planner": 0.25, "coder": 0.25}
    assert blame(trial(1.0), team(), ["planner", "coder"]) == {"planner": 0.0, "coder": 0.0}
    assert blame(trial(-1.0), team(), ["coder", "nobody"], (-1.0, 3.0)) == {"coder": 1.0, "nobody": 0.0}
    assert blame(trial(), Episode("ro", "at", "t", []), ["coder", "planner"]) == {"coder": 0.5, "planner": 0.5}
