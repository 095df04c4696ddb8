"""Batches: merging loses nothing, a rollout counts once, and every turn is accounted for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from team_episodes import episode, reward, turn

from coterie.episodes import Turn
from coterie.errors import ConfigError
from coterie.interfaces import TrainingRow
from coterie_trainers.batches import Batch, build_batch, value_rows
from coterie_trainers.credit import Credit, CreditedTurn, credited_turns

POLICIES = {"analyst": "small", "coder": "big", "reviewer": "big"}


def credited(*turns: Turn, rollout: str = "ro-1") -> list[CreditedTurn]:
    return credited_turns([episode(turns, [reward(0, rollout=rollout)], rollout=rollout)], Credit())


def conversation(lengths: Sequence[tuple[int, int]], **kwargs) -> list[Turn]:
    """Turns that continue each other exactly: so many foreign tokens before, and so many sampled ones, each."""
    tokens: list[int] = []
    turns = []
    for number, (foreign, sampled) in enumerate(lengths):
        tokens += [100 + number] * foreign
        response = [200 + number] * sampled
        turns.append(
            turn(call_id=f"c{number}", prompt=tokens, response=response, index=number, start_ns=number, **kwargs)
        )
        tokens = [*tokens, *response]
    return turns


@st.composite
def turn_lists(draw: st.DrawFn) -> list[CreditedTurn]:
    """Several rollouts in which several threads of several roles interleave, some breaking off their prefix.

    Few distinct tokens, so that prefixes also agree by accident.
    """
    items: list[CreditedTurn] = []
    ids = st.lists(st.integers(0, 1), min_size=1, max_size=3)
    for rollout in range(draw(st.integers(1, 4))):
        turns: list[Turn] = []
        ends: dict[tuple[str, str], list[int]] = {}
        for start in range(draw(st.integers(0, 7))):
            role = draw(st.sampled_from(["analyst", "coder", "reviewer", "human"]))
            path = draw(st.sampled_from(["x", "y"]))
            before = ends.get((role, path), []) if draw(st.integers(0, 3)) else []
            between = draw(st.lists(st.integers(0, 1), max_size=2)) if before else draw(ids)
            prompt, response = [*before, *between], draw(ids)
            if draw(st.integers(0, 3)) == 0:
                place = draw(st.integers(0, len(prompt) - 1)) if prompt else 0
                prompt[place : place + 1] = [1 - token for token in prompt[place : place + 1]]
            known = draw(st.integers(0, 5)) > 0
            turns.append(
                turn(
                    role,
                    call_id=f"{rollout}.{start}",
                    path=path,
                    index=start,
                    prompt=prompt,
                    response=response if known else None,
                    logprobs=[-draw(st.floats(0.01, 5)) for _ in response] if known else None,
                    policy=POLICIES.get(role),
                    version=draw(st.sampled_from([1, 1, 1, 2])),
                    start_ns=start,
                )
            )
            ends[role, path] = [*prompt, *response]
        items += credited(*turns, rollout=f"ro-{rollout}")
    return items


advantage = st.sampled_from([0.0, 0.0, 1.0, -1.5, 0.25])


def unmerged(row: TrainingRow, original: Turn) -> tuple[tuple, tuple, tuple, set[float]]:
    """A turn as it can be read out of its row: prompt, response, log-probs, advantages."""
    tokens = row.prompt_ids + row.response_ids
    start = len(original.prompt_ids or ()) - len(row.prompt_ids)
    part = slice(start, start + len(original.response_ids or ()))
    assert set(row.response_mask[part]) == {1}
    return (
        tokens[: len(row.prompt_ids) + start],
        row.response_ids[part],
        row.rollout_logprobs[part],
        set(row.advantages[part]),
    )


def assert_every_row_is_sound(batch: Batch, items: Sequence[CreditedTurn], values: Mapping[str, float]) -> None:
    turns = {item.turn.call_id: item.turn for item in items}
    rollouts = {item.turn.call_id: item.sample.rollout_id for item in items}
    for policy, rows in batch.rows.items():
        for row in rows:
            members = [turns[call] for call in row.call_ids]
            assert {POLICIES[member.role] for member in members} == {policy} == {row.policy}
            assert len({(member.role, member.agent_path, member.policy_version) for member in members}) == 1
            assert {rollouts[call] for call in row.call_ids} == {row.rollout_id}
            for member in members:
                expected = (member.prompt_ids, member.response_ids, member.logprobs, {values[member.call_id]})
                assert unmerged(row, member) == expected
            width = len(row.response_ids)
            assert len(row.response_mask) == len(row.rollout_logprobs) == len(row.advantages) == width
            assert sum(row.response_mask) == sum(len(member.response_ids or ()) for member in members)
            for mask, logprob, value in zip(row.response_mask, row.rollout_logprobs, row.advantages, strict=True):
                assert mask == 1 or (logprob == 0.0 and value == 0.0)


@given(items=turn_lists(), merge=st.booleans(), data=st.data())
def test_merging_is_lossless_and_masks_what_was_not_sampled(
    items: list[CreditedTurn], merge: bool, data: st.DataObject
) -> None:
    values = [data.draw(advantage) for _ in items]
    batch = build_batch(items, values, POLICIES, merge=merge, drop_zero=False)
    assert_every_row_is_sound(batch, items, {item.turn.call_id: v for item, v in zip(items, values, strict=True)})
    calls = [call for rows in batch.rows.values() for row in rows for call in row.call_ids]
    assert sorted(calls) == sorted(
        item.turn.call_id for item in items if item.turn.role in POLICIES and item.turn.trainable
    )
    if not merge:
        assert batch.merged == 0
        assert all(len(row.call_ids) == 1 for rows in batch.rows.values() for row in rows)


@given(items=turn_lists(), merge=st.booleans(), drop=st.booleans(), limit=st.sampled_from([None, 3, 6]), data=st.data())
def test_every_turn_is_accounted_for(
    items: list[CreditedTurn], merge: bool, drop: bool, limit: int | None, data: st.DataObject
) -> None:
    values = [data.draw(advantage) for _ in items]
    batch = build_batch(items, values, POLICIES, merge=merge, drop_zero=drop, max_tokens=limit)
    assert batch.turns == len(items) == sum(batch.frozen.values()) + batch.untrainable + batch.trainable
    assert batch.trainable == batch.too_long + batch.zero_advantage + batch.trained
    assert sum(map(len, batch.rows.values())) == batch.trained - batch.merged
    assert batch.frozen.get("human", 0) == sum(item.turn.role == "human" for item in items)
    rows = [row for rows in batch.rows.values() for row in rows]
    assert limit is None or all(len(row.prompt_ids) + len(row.response_ids) <= limit for row in rows)
    assert not drop or all(any(row.advantages) for row in rows)


@given(items=turn_lists(), merge=st.booleans())
def test_each_rollout_weighs_the_same_and_the_mean_weight_is_one(items: list[CreditedTurn], merge: bool) -> None:
    batch = build_batch(items, [1.0] * len(items), POLICIES, merge=merge)
    for rows in batch.rows.values():
        if rows:
            total: dict[str, float] = defaultdict(float)
            for row in rows:
                total[row.rollout_id] += row.weight
            assert list(total.values()) == pytest.approx([len(rows) / len(total)] * len(total))
            assert np.mean([row.weight for row in rows]) == pytest.approx(1)


@given(items=turn_lists(), data=st.data())
def test_dropping_rows_without_advantage_keeps_what_the_others_weigh_against_each_other(
    items: list[CreditedTurn], data: st.DataObject
) -> None:
    values = [data.draw(advantage) for _ in items]
    whole = build_batch(items, values, POLICIES, drop_zero=False)
    dropped = build_batch(items, values, POLICIES)
    for policy, rows in dropped.rows.items():
        before = {row.call_ids: row.weight for row in whole.rows[policy]}
        ratios = [row.weight / before[row.call_ids] for row in rows]
        assert ratios == pytest.approx([ratios[0]] * len(rows) if ratios else [])
        assert [row.call_ids for row in rows] == [row.call_ids for row in whole.rows[policy] if any(row.advantages)]
        if rows:
            assert np.mean([row.weight for row in rows]) == pytest.approx(1)


@given(items=turn_lists(), order=st.randoms(use_true_random=False))
def test_the_order_of_turns_does_not_matter(items: list[CreditedTurn], order) -> None:
    shuffled = list(items)
    order.shuffle(shuffled)
    value = {item.turn.call_id: float(number) for number, item in enumerate(items)}

    def rows(some: list[CreditedTurn]) -> dict[tuple, tuple]:
        batch = build_batch(some, [value[item.turn.call_id] for item in some], POLICIES)
        return {
            row.call_ids: (row.response_ids, row.advantages, pytest.approx(row.weight))
            for rows in batch.rows.values()
            for row in rows
        }

    assert rows(shuffled) == rows(items)


def test_a_conversation_becomes_one_row_by_hand() -> None:
    turns = [
        turn(call_id="a", prompt=[1, 2], response=[3, 4], logprobs=[-0.1, -0.2], start_ns=0),
        turn(call_id="b", prompt=[1, 2, 3, 4, 9, 9], response=[5], logprobs=[-0.3], index=1, start_ns=1),
    ]
    batch = build_batch(credited(*turns), [0.5, -1.0], "team")
    assert batch.rows["team"] == (
        TrainingRow(
            policy="team",
            rollout_id="ro-1",
            role="coder",
            call_ids=("a", "b"),
            prompt_ids=(1, 2),
            response_ids=(3, 4, 9, 9, 5),
            response_mask=(1, 1, 0, 0, 1),
            rollout_logprobs=(-0.1, -0.2, 0.0, 0.0, -0.3),
            advantages=(0.5, 0.5, 0.0, 0.0, -1.0),
            weight=1.0,
            policy_version=1,
        ),
    )
    assert (batch.turns, batch.trained, batch.merged) == (2, 2, 1)


def test_weights_by_hand() -> None:
    """Rollout a in one row, b in three: 1 and 1/3 each, times 4 / 2."""
    items = credited(turn(call_id="a"), rollout="ro-a") + credited(
        *[turn(call_id=f"b{number}", prompt=[number], start_ns=number) for number in range(3)], rollout="ro-b"
    )
    batch = build_batch(items, [1.0] * 4, "team")
    assert [row.weight for row in batch.rows["team"]] == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    one_left = build_batch(items, [1.0, 0.0, 1.0, 0.0], "team")
    assert [row.weight for row in one_left.rows["team"]] == pytest.approx([2 * 3 / 4, 2 * 1 / 4])
    assert one_left.zero_advantage == 2


def test_interleaved_threads_of_one_path_are_each_merged() -> None:
    """Two fan-out workers with tool loops of their own: each continues itself, not what came last."""
    turns = [
        turn(call_id="a1", prompt=[1], response=[10], start_ns=0),
        turn(call_id="b1", prompt=[2], response=[20], start_ns=1, index=1),
        turn(call_id="a2", prompt=[1, 10, 7], response=[11], start_ns=2, index=2),
        turn(call_id="b2", prompt=[2, 20, 7], response=[21], start_ns=3, index=3),
    ]
    batch = build_batch(credited(*turns), [1.0] * 4, "team")
    assert [row.call_ids for row in batch.rows["team"]] == [("a1", "a2"), ("b1", "b2")]


@pytest.mark.parametrize(
    "change",
    [
        {"path": "boss/coder"},
        {"version": 2},
        {"role": "reviewer"},
        {"prompt": [1, 2, 3, 4, 6, 9]},
        {"prompt": [1, 8, 3, 4, 5, 9]},
        {"prompt": [1, 2, 3, 4]},
    ],
    ids=["other path", "other version", "other role", "other answer", "other prompt", "shorter"],
)
def test_what_does_not_continue_exactly_stays_apart(change: dict) -> None:
    first = turn(call_id="a", prompt=[1, 2, 3], response=[4, 5])
    second = turn(**{"role": "coder", "prompt": [1, 2, 3, 4, 5, 9], "call_id": "b", "start_ns": 1, **change})
    batch = build_batch(credited(first, second), [1.0, 1.0], "team")
    assert [row.call_ids for row in batch.rows["team"]] == [("a",), ("b",)]


def test_two_answers_to_one_context_do_not_share_a_row() -> None:
    first = turn(call_id="a", prompt=[1], response=[2])
    branches = [
        turn(call_id=name, prompt=[1, 2, 3], response=[4], start_ns=n, index=n) for n, name in ((1, "b"), (2, "c"))
    ]
    batch = build_batch(credited(first, *branches), [1.0] * 3, "team")
    assert [row.call_ids for row in batch.rows["team"]] == [("a", "b"), ("c",)]


def test_rollouts_never_share_a_row() -> None:
    first, second = conversation([(1, 1), (1, 1)])
    items = credited(first, rollout="ro-a") + credited(second, rollout="ro-b")
    assert [row.call_ids for row in build_batch(items, [1.0, 1.0], "team").rows["team"]] == [("c0",), ("c1",)]


def test_a_conversation_that_grows_too_long_keeps_its_beginning() -> None:
    turns = conversation([(3, 2), (3, 2), (3, 2)])
    batch = build_batch(credited(*turns), [1.0] * 3, "team", max_tokens=10)
    assert [row.call_ids for row in batch.rows["team"]] == [("c0", "c1")]
    assert batch.too_long == 1


def test_a_merged_row_stays_whole_when_one_of_its_turns_has_no_advantage() -> None:
    batch = build_batch(credited(*conversation([(1, 1), (1, 1)])), [0.0, 1.0], "team")
    assert batch.rows["team"][0].advantages == (0.0, 0.0, 1.0)
    assert batch.zero_advantage == 0


@pytest.mark.parametrize(
    "broken",
    [
        {"prompt": None},
        {"response": None},
        {"response": []},
        {"logprobs": [-1.0]},
        {"logprobs": [-1.0, math.nan]},
        {"logprobs": [-math.inf, -1.0]},
    ],
    ids=["no prompt", "no response", "empty response", "a log-prob short", "nan", "inf"],
)
def test_a_turn_without_usable_tokens_is_counted_and_never_trained_on(broken: dict) -> None:
    items = credited(turn(call_id="a"), turn(**{"call_id": "b", "start_ns": 1, **broken}))
    batch = build_batch(items, [1.0, 1.0], "team")
    assert [row.call_ids for row in batch.rows["team"]] == [("a",)]
    assert (batch.untrainable, batch.trainable) == (1, 1)


def test_roles_without_a_policy_are_frozen_and_counted() -> None:
    turns = [turn("coder", call_id="a"), turn("judge", call_id="b", policy="other"), turn("judge", call_id="c")]
    for policy_of in ({"coder": "team"}, lambda role: "team" if role == "coder" else None):
        batch = build_batch(credited(*turns), [1.0] * 3, policy_of)
        assert batch.frozen == {"judge": 2}
        assert [row.call_ids for row in batch.rows["team"]] == [("a",)]


def test_a_policy_without_rows_is_listed_empty() -> None:
    batch = build_batch(credited(turn()), [0.0], "team")
    assert batch.rows == {"team": ()}
    assert batch.zero_advantage == 1
    assert build_batch([], [], "team").turns == 0


def test_training_a_policy_on_anothers_tokens_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"call call-0 of role 'coder' was answered by policy 'team', but 'big'"):
        build_batch(credited(turn()), [1.0], "big")


def test_advantages_must_be_one_finite_number_a_turn() -> None:
    with pytest.raises(ConfigError, match=r"1 turns but advantages of shape \(2,\)"):
        build_batch(credited(turn()), [1.0, 2.0], "team")
    with pytest.raises(ConfigError, match=r"call call-0 of role 'coder' in rollout ro-1 is nan"):
        build_batch(credited(turn()), [math.nan], "team")


def test_masked_turns_are_counted_and_are_no_rows() -> None:
    items = credited(*conversation([(2, 2), (1, 2), (1, 3)]))
    batch = build_batch(items, [1.0] * 3, "team", masked={1})
    (row,) = batch.rows["team"]
    assert row.call_ids == ("c0", "c2")
    assert row.response_mask == (1, 1, 0, 0, 0, 0, 1, 1, 1)
    assert (batch.masked, batch.trainable, batch.trained) == (1, 3, 2)


def test_token_level_rewards_lie_at_the_end_of_each_turn() -> None:
    items = credited(*conversation([(2, 2), (1, 3)]))
    rows = build_batch(items, [0.0, -2.0], "team", token_level=True).rows["team"]
    assert [row.rewards for row in rows] == [(0.0, 0.0), (0.0, 0.0, -2.0)]
    assert [row.advantages for row in rows] == [(0.0, 0.0), (0.0, 0.0, 0.0)]
    assert [row.weight for row in rows] == [1.0, 1.0]


def test_returns_lie_at_the_beginning_of_each_turn_and_keep_rows() -> None:
    items = credited(*conversation([(2, 2), (1, 3)]))
    (row,) = build_batch(items, [0.0, 0.0], "team", returns_N=[0.5, None]).rows["team"]
    assert row.returns == (0.5, None, None, None, None, None)
    assert build_batch(items, [0.0, 1.0], "team", returns_N=[None, None]).rows["team"][0].returns is None


def test_a_critic_is_asked_about_the_end_of_each_prompt() -> None:
    items = credited(*conversation([(2, 2), (1, 3)]), turn("judge", call_id="x"), turn(call_id="y", logprobs=()))
    found = value_rows(items, {"coder": "team"})
    assert {place: (row.prompt_ids, row.response_ids) for place, row in found["team"]} == {
        0: ((100, 100), (200,)),
        1: ((100, 100, 200, 200, 101), (201,)),
    }
