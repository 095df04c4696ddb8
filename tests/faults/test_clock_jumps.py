"""The store's clock is set while runners work: each rollout succeeds once, and nothing is held for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import coterie
from coterie.runner import Runner
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import AttemptState, FailureCause, Mode, Rollout, RolloutState, Task, now_ns

HOUR = 3600 * 10**9


@pytest.mark.parametrize("jumps", [[1], [-1], [1, 0, -1, 0]], ids=["forward", "back", "to and fro"])
async def test_a_clock_that_jumps_while_leases_run(tmp_path: Path, jumps: list[int]) -> None:
    offset = 0
    begun = 0

    async def team(task: Task) -> float:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0.05)
        return 1.0

    def clock() -> int:
        return now_ns() + offset

    path = tmp_path / "store.db"
    async with await SqliteStore.open(path, clock=clock) as store, await SqliteStore.open(path, clock=clock) as other:
        await store.add_tasks([Task("t", 1)])
        rollouts = [Rollout("t", mode=Mode.VAL, max_attempts=1 + len(jumps)) for _ in range(60)]
        # One whose worker is gone: only the clock can bring it back.
        orphan = Rollout("t", mode=Mode.VAL, max_attempts=10)
        await store.begin(orphan, "gone", lease_seconds=1.0)
        function = coterie.rollout(team)
        async with (
            Runner(store, function, worker="one", concurrency=4, lease_seconds=1.0),
            Runner(other, function, worker="other", concurrency=4, lease_seconds=1.0),
        ):
            await store.enqueue(rollouts)
            for hours in jumps:
                before = begun
                while begun < before + 5:  # noqa: ASYNC110 - the runners announce it by no event
                    await asyncio.sleep(0.005)
                offset = hours * HOUR
            ids = [rollout.id for rollout in [*rollouts, orphan]]
            ended = await store.wait(ids, timeout_seconds=30)
        attempts = await store.get_attempts(ids)
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    for tried in attempts.values():
        assert [one.state for one in tried].count(AttemptState.SUCCEEDED) == 1
        assert {one.cause for one in tried if one.state is AttemptState.FAILED} <= {FailureCause.LEASE_EXPIRED}
