"""Critics' values come into samples, and no reward is lost with a turn that has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from team_episodes import episode, reward, turn

from coterie.interfaces import TrainingRow
from coterie_trainers.advantages.turn_gae import TurnGae
from coterie_trainers.credit import Credit, credited_turns
from coterie_trainers.loop.valuing import valued


class Critic:
    """Says of each row what its first response token is."""

    async def values(self, policy: str, rows: Sequence[TrainingRow]) -> list[list[float]]:
        return [[float(row.response_ids[0])] for row in rows]


async def test_the_reward_that_came_with_a_failed_last_call_reaches_the_call_before() -> None:
    failed: dict[str, Any] = {"response": None, "logprobs": None}
    turns = [
        turn(call_id="a", response=[2], start_ns=0),
        turn("other", call_id="b", response=[7], start_ns=1),
        replace(turn(call_id="c", index=1, start_ns=2, **failed), error="reset by peer"),
        replace(turn(call_id="d", index=2, start_ns=3, **failed), error="reset by peer"),
    ]
    credited = credited_turns([episode(turns, [reward(1), reward(0.25, call="c")])], Credit())
    assert [item.sample.step_reward for item in credited] == [0, 1, 0.25, 1]
    found = await valued(credited, "team", Critic())  # type: ignore[arg-type]
    assert [(item.sample.value, item.sample.step_reward) for item in found[:2]] == [(2, 1.25), (7, 1)]
    kept = [item.sample for item in found if item.sample.value is not None]
    assert TurnGae().returns(kept).tolist() == [1.25, 1]
