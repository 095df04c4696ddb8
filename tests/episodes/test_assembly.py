"""Episodes from hand-made spans: what belongs to whom, and spans that nobody of us made."""

from __future__ import annotations

import json
import random
from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coterie import conventions as c
from coterie.assembly import build_episode, message_text
from coterie.episodes import Edge, EdgeKind, Episode
from coterie.vocabulary import Reward, Span, SpanEvent, SpanStatus


def span(
    span_id: str,
    operation: str | None,
    at: int,
    parent: str | None = None,
    agent: str | None = None,
    *,
    events: tuple[SpanEvent, ...] = (),
    status: SpanStatus = SpanStatus.UNSET,
    message: str = "",
    **attributes: Any,
) -> Span:
    values = {c.OPERATION: operation, c.AGENT_NAME: agent} | attributes
    return Span(
        trace_id="0" * 32,
        span_id=span_id,
        parent_id=parent,
        name=f"{operation} {agent}",
        start_ns=at,
        end_ns=at + 5,
        status=status,
        status_message=message,
        attributes={name: value for name, value in values.items() if value is not None},
        events=events,
    )


def chat(span_id: str, at: int, parent: str | None = None, agent: str | None = None, **attributes: Any) -> Span:
    return span(span_id, c.CHAT, at, parent, agent, **attributes)


def full_chat(span_id: str, at: int, parent: str, agent: str, role: str, path: str, turn: int, **more: Any) -> Span:
    return chat(
        span_id,
        at,
        parent,
        agent,
        **{
            c.ROLE: role,
            c.AGENT_PATH: path,
            c.TURN: turn,
            c.CALL_ID: f"ca-{span_id}",
            c.PROMPT_TOKENS: [1, 2, 3],
            c.RESPONSE_TOKENS: [4, 5],
            c.LOGPROBS: [-0.5, -1],
        }
        | more,
    )


def episode(*spans: Span, rewards: tuple[Reward, ...] = ()) -> Episode:
    shuffled = list(spans)
    random.Random(3).shuffle(shuffled)
    return build_episode("t1", "at", "ro", shuffled, rewards)


def test_a_turn_has_all_that_its_span_says() -> None:
    reward = Reward("ro", "at", 1.0, call_id="ca-a")
    made = episode(
        full_chat(
            "a",
            10,
            "root",
            "Senior Coder",
            "coder",
            "team/Senior Coder",
            0,
            **{
                c.INPUT_MESSAGES: json.dumps([{"role": "user", "content": "hello"}]),
                c.OUTPUT_MESSAGES: json.dumps([{"role": "assistant", "content": "print(1)"}]),
                c.POLICY_NAME: "p",
                c.POLICY_VERSION: 3,
                c.PROMPT_NAME: "coder prompt",
                c.PROMPT_VERSION: 2,
                c.REQUEST_MODEL: "asked",
                c.RESPONSE_MODEL: "answered",
                c.FINISH_REASONS: ["length"],
                c.STATE_KEY: "room 3",
            },
        ),
        span("root", c.INVOKE_WORKFLOW, 1),
        rewards=(reward,),
    )
    (turn,) = made.turns
    assert (turn.call_id, turn.agent, turn.role, turn.agent_path, turn.index) == (
        "ca-a",
        "Senior Coder",
        "coder",
        "team/Senior Coder",
        0,
    )
    assert (turn.prompt_ids, turn.response_ids, turn.logprobs) == ((1, 2, 3), (4, 5), (-0.5, -1.0))
    assert turn.trainable
    assert (turn.messages, turn.text) == (({"role": "user", "content": "hello"},), "print(1)")
    assert turn.output == ({"role": "assistant", "content": "print(1)"},)
    assert (turn.policy, turn.policy_version, turn.prompt_name, turn.prompt_version) == ("p", 3, "coder prompt", 2)
    assert (turn.model, turn.finish_reason, turn.error, turn.state_key) == ("answered", "length", None, "room 3")
    assert (turn.start_ns, turn.end_ns) == (10, 15)
    assert (made.task_id, made.rollout_id, made.attempt_id, made.rewards) == ("t1", "ro", "at", (reward,))


def test_parallel_branches_are_told_apart_by_their_spans_not_by_time() -> None:
    made = episode(
        span("root", c.INVOKE_WORKFLOW, 0),
        span("A", c.INVOKE_AGENT, 1, "root", "A"),
        span("B", c.INVOKE_AGENT, 2, "root", "B"),
        chat("b0", 10, "B"),
        chat("a0", 11, "A"),
        chat("b1", 12, "B"),
        chat("a1", 13, "A"),
    )
    assert [(turn.role, turn.agent_path, turn.index) for turn in made.turns] == [
        ("b", "B", 0),
        ("a", "A", 0),
        ("b", "B", 1),
        ("a", "A", 1),
    ]
    assert made.roles == ("b", "a")


def test_each_run_of_an_agent_is_an_invocation_of_its_own() -> None:
    """A manager calls a worker twice; a run of the worker within itself, as a graph's node shows it, is part of the run."""
    made = episode(
        span("M", c.INVOKE_AGENT, 1, None, "manager"),
        chat("m0", 2, "M"),
        span("t1", c.EXECUTE_TOOL, 3, "M"),
        span("W1", c.INVOKE_AGENT, 4, "t1", "worker"),
        span("node", c.INVOKE_AGENT, 5, "W1", "worker"),
        chat("w0", 6, "node"),
        chat("w1", 7, "W1"),
        span("t2", c.EXECUTE_TOOL, 13, "M"),
        span("W2", c.INVOKE_AGENT, 14, "t2", "worker"),
        chat("w2", 15, "W2"),
        chat("m1", 20, "M"),
        chat("alone", 30),
    )
    assert [turn.invocation for turn in made.turns] == ["M", "W1", "W1", "W2", "M", None]


def test_turn_numbers_of_the_spans_count_where_they_are_whole() -> None:
    whole = episode(
        full_chat("x", 10, "r", "A", "a", "A", 1),
        full_chat("y", 11, "r", "A", "a", "A", 0),
    )
    assert [turn.index for turn in whole.turns] == [1, 0]
    doubled = episode(
        full_chat("x", 10, "r", "A", "a", "A", 4),
        full_chat("y", 11, "r", "A", "a", "A", 4),
        full_chat("z", 12, "r", "B", "b", "B", 7),
    )
    assert [(turn.role, turn.index) for turn in doubled.turns] == [("a", 0), ("a", 1), ("b", 7)]


def test_a_failed_call_is_an_untrainable_turn() -> None:
    made = episode(
        full_chat("x", 10, "r", "A", "a", "A", 0, status=SpanStatus.ERROR, message="reset by peer"),
        full_chat("y", 20, "r", "A", "a", "A", 1, **{c.ERROR_TYPE: "TimeoutError"}),
        full_chat("z", 30, "r", "A", "a", "A", 2, **{c.CALL_TRIES: 3}),
    )
    assert [(turn.error, turn.trainable) for turn in made.turns] == [
        ("reset by peer", False),
        ("TimeoutError", False),
        (None, True),
    ]
    assert [turn.response_ids for turn in made.turns] == [None, None, (4, 5)]


def test_a_call_that_client_and_gateway_recorded_is_one_turn() -> None:
    seen_by_client = chat("x", 10, "r", "A", **{c.CALL_ID: "ca-1"})
    seen_by_gateway = full_chat("y", 11, "r", "A", "a", "A", 0, **{c.CALL_ID: "ca-1"})
    (turn,) = episode(seen_by_client, seen_by_gateway).turns
    assert turn.trainable


def test_of_a_call_seen_twice_the_program_tells_who_called_and_the_gateway_what_was_said() -> None:
    told = {c.ROLE: "coder", c.AGENT_PATH: "Boss/Coder", c.TURN: 3, c.CALL_ID: "ca-1", c.STATE_KEY: "s"}
    seen_by_program = chat("x", 10, "r", "Coder", **told)
    by_gateway = {c.CALL_ID: "ca-1", c.RECORDED_BY: c.GATEWAY, c.PROMPT_NAME: "p", c.PROMPT_VERSION: 2}
    refused_at_first = chat("y", 11, None, "coder", status=SpanStatus.ERROR, **by_gateway, **{c.ERROR_TYPE: "Busy"})
    answered = full_chat("z", 12, None, "coder", "coder", "coder", -1, **by_gateway)
    for order in permutations([seen_by_program, refused_at_first, answered]):
        (turn,) = episode(span("r", c.INVOKE_AGENT, 9, None, "Coder"), *order).turns
        assert (turn.agent, turn.role, turn.agent_path) == ("Coder", "coder", "Boss/Coder")
        assert (turn.index, turn.state_key, turn.error, turn.start_ns) == (3, "s", None, 10)
        assert (turn.prompt_ids, turn.response_ids, turn.prompt_version) == ((1, 2, 3), (4, 5), 2)
        assert turn.invocation == "r"


def test_what_the_program_never_got_is_no_sample_though_the_gateway_saw_it() -> None:
    gave_up = chat("x", 10, "r", "A", status=SpanStatus.ERROR, **{c.CALL_ID: "ca-1", c.ERROR_TYPE: "APITimeoutError"})
    answered = full_chat("z", 12, None, "a", "a", "a", 0, **{c.CALL_ID: "ca-1", c.RECORDED_BY: c.GATEWAY})
    (turn,) = episode(gave_up, answered).turns
    assert (turn.trainable, turn.error) == (False, "APITimeoutError")


def test_tool_calls_belong_to_the_agent_above_them() -> None:
    made = episode(
        span("A", c.INVOKE_AGENT, 1, None, "Lead Coder", **{c.ROLE: "coder"}),
        span(
            "t",
            c.EXECUTE_TOOL,
            2,
            "A",
            **{c.TOOL_NAME: "run", c.TOOL_CALL_ID: "call_1", c.TOOL_ARGUMENTS: {"x": 1}, c.TOOL_RESULT: "2"},
        ),
        span("u", c.EXECUTE_TOOL, 9, "A", status=SpanStatus.ERROR, **{c.ERROR_TYPE: "ValueError"}),
    )
    first, second = made.tool_calls
    assert (first.name, first.role, first.agent_path, first.call_id) == ("run", "coder", "Lead Coder", "call_1")
    assert (first.arguments, first.result, first.error) == ('{"x": 1}', "2", None)
    assert second.error == "ValueError"


def test_an_agent_under_a_tool_of_another_is_a_delegation() -> None:
    made = episode(
        span("M", c.INVOKE_AGENT, 1, None, "manager"),
        span("t", c.EXECUTE_TOOL, 2, "M"),
        span("inner", None, 3, "t"),
        span("C", c.INVOKE_AGENT, 4, "inner", "coder"),
        chat("x", 5, "C"),
        span("same", c.INVOKE_AGENT, 6, "t", "manager"),
    )
    assert made.edges == [Edge(EdgeKind.DELEGATION, "manager", "coder", 4)]
    assert made.turns[0].agent_path == "manager/coder"


def test_who_delegates_is_who_called_the_tool_wherever_it_runs() -> None:
    made = episode(
        span("M", c.INVOKE_AGENT, 1, None, "manager"),
        span("step", c.INVOKE_AGENT, 2, None, "call_tools"),
        span("t", c.EXECUTE_TOOL, 3, "step", "manager"),
        span("C", c.INVOKE_AGENT, 4, "t", "coder"),
    )
    assert made.edges == [Edge(EdgeKind.DELEGATION, "manager", "coder", 4)]


def test_handoff_events_are_edges_and_are_not_doubled_by_nesting() -> None:
    def event(at: int, **attributes: str) -> SpanEvent:
        names = {"source": c.HANDOFF_SOURCE, "target": c.HANDOFF_TARGET, "kind": c.HANDOFF_KIND}
        return SpanEvent(c.HANDOFF_EVENT, at, {names[key]: value for key, value in attributes.items()})

    made = episode(
        span(
            "M",
            c.INVOKE_AGENT,
            1,
            None,
            "manager",
            events=(
                event(20, target="reviewer"),
                event(3, source="manager", target="coder", kind="delegation"),
                event(30, source="reviewer", target="coder", kind="no such kind"),
                event(40, source="nobody"),
                SpanEvent("something else", 50, {c.HANDOFF_TARGET: "x"}),
            ),
        ),
        span("t", c.EXECUTE_TOOL, 2, "M"),
        span("C", c.INVOKE_AGENT, 4, "t", "coder"),
        span("D", c.INVOKE_AGENT, 9, "t", "coder"),
    )
    assert made.edges == [
        Edge(EdgeKind.DELEGATION, "manager", "coder", 3),
        Edge(EdgeKind.DELEGATION, "manager", "coder", 9),
        Edge(EdgeKind.HANDOFF, "manager", "reviewer", 20),
        Edge(EdgeKind.HANDOFF, "reviewer", "coder", 30),
    ]


def test_texts_of_messages_in_every_form() -> None:
    assert message_text({"content": "plain"}) == "plain"
    assert message_text({"content": [{"type": "output_text", "text": "a"}, {"type": "text", "text": "b"}]}) == "ab"
    assert message_text({"parts": [{"type": "text", "content": "a"}, {"type": "tool_call", "name": "x"}]}) == "a"
    assert message_text({"content": None, "tool_calls": []}) == ""
    assert message_text({"type": "function_call", "name": "x"}) == ""


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["[", '{"a": [1]}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = [value for name, value in vars(c).items() if name.isupper() and isinstance(value, str)]
OPERATIONS = st.sampled_from([c.CHAT, c.EXECUTE_TOOL, c.INVOKE_AGENT, c.INVOKE_WORKFLOW]) | ODD


@st.composite
def odd_spans(draw: st.DrawFn) -> Span:
    attributes = draw(st.dictionaries(st.sampled_from(NAMES), ODD, max_size=8)) | {c.OPERATION: draw(OPERATIONS)}
    attributes |= {c.ROLE: draw(ODD)}  # with it a span is one of ours, however odd
    events = [SpanEvent(c.HANDOFF_EVENT, 1, draw(st.dictionaries(st.sampled_from(NAMES), ODD, max_size=3)))]
    ids = st.sampled_from(["a", "b", "c", "d"])
    return Span(
        "0" * 32,
        draw(ids),
        draw(st.text(max_size=3)),
        draw(st.integers(0, 3)),
        0,
        parent_id=draw(st.none() | ids),
        status=draw(st.sampled_from(SpanStatus)),
        attributes=attributes,
        events=events,
    )


@given(st.lists(odd_spans(), max_size=6))
def test_odd_spans_never_raise_and_no_call_is_lost(spans: list[Span]) -> None:
    made = build_episode("t", "at", "ro", spans, ())
    calls = {
        one.attributes.get(c.CALL_ID) or one.span_id
        for one in spans
        if one.attributes[c.OPERATION] == c.CHAT
        if isinstance(one.attributes.get(c.CALL_ID, ""), str)
    }
    assert calls <= {turn.call_id for turn in made.turns}
    for turn in made.turns:
        assert isinstance(turn.text, str)
        assert turn.role
        assert turn.agent
    for role in made.roles:
        indexes = [turn.index for turn in made.turns if turn.role == role]
        assert len(set(indexes)) == len(indexes)
        assert min(indexes) >= 0
