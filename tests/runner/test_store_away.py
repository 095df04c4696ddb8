"""A store that is away for a time: its file is held by another process, longer than a write waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import coterie
from coterie.runner import Runner
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import Attempt, AttemptState, FailureCause, Mode, Rollout, RolloutState, Task, now_ns


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store that waits 50 ms for its file."""
    async with await SqliteStore.open(tmp_path / "store.db", lock_timeout_seconds=0.05) as store:
        await store.add_tasks([Task("t1", None)])
        yield store


@contextmanager
def held(store: SqliteStore) -> Iterator[None]:
    """Hold the file: nobody else can write."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("COMMIT")
        other.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the runner announces by no event."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.002)


async def attempts_at(store: SqliteStore, rollout: Rollout) -> list[Attempt]:
    return list((await store.get_attempts([rollout.id]))[rollout.id])


async def test_attempts_go_on_and_their_ends_are_delivered_when_it_is_back(impatient: SqliteStore, caplog) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def team(task):
        begun.set()
        await asyncio.sleep(0.3)
        coterie.reward(0.5, name="while it was away")
        ended.set()
        return 1.0

    rollout = Rollout("t1", mode=Mode.VAL, max_attempts=3)
    async with Runner(impatient, coterie.rollout(team)) as runner:
        await impatient.enqueue([rollout])
        await asyncio.wait_for(begun.wait(), 10)
        with held(impatient):
            await asyncio.wait_for(ended.wait(), 10)
            await until(lambda: runner.away_seconds is not None)
            await asyncio.sleep(0.5)
            assert runner.running == 1
        await asyncio.wait_for(runner.drain(), 20)
        assert runner.away_seconds is None
    (attempt,) = await attempts_at(impatient, rollout)
    assert attempt.state is AttemptState.SUCCEEDED
    rewards = (await impatient.get_rewards([attempt.id]))[attempt.id]
    assert [reward.name for reward in rewards] == ["while it was away", "reward"]
    assert "Attempts go on" in caplog.text
    assert "The store answers again" in caplog.text


async def test_heartbeats_hold_the_lease_of_an_attempt_whose_end_waits(impatient: SqliteStore, monkeypatch) -> None:
    """Only ends fail here: the attempt is done, and must not be lost to others while its end is tried again."""

    async def team(task):
        return 1.0

    first_end: list[float] = []
    finish = SqliteStore.finish

    async def failing(self, *args, **options):
        first_end.append(time.monotonic())
        if first_end[-1] - first_end[0] < 1.5:
            raise coterie.errors.StoreUnavailableError("the disk is full")
        return await finish(self, *args, **options)

    monkeypatch.setattr(SqliteStore, "finish", failing)
    rollout = Rollout("t1", mode=Mode.VAL, max_attempts=3)
    function = coterie.rollout(team)
    async with Runner(impatient, function, lease_seconds=0.5), Runner(impatient, function, lease_seconds=0.5):
        await impatient.enqueue([rollout])
        (ended,) = await impatient.wait([rollout.id], timeout_seconds=20)
    assert ended.state is RolloutState.SUCCEEDED
    assert len(await attempts_at(impatient, rollout)) == 1


async def test_a_result_is_dropped_aloud_when_its_lease_was_lost(impatient: SqliteStore, caplog) -> None:
    go = asyncio.Event()

    async def team(task):
        await go.wait()
        return 0.0

    rollout = Rollout("t1", mode=Mode.VAL, max_attempts=3)
    async with Runner(impatient, coterie.rollout(team), worker="cut off") as runner:
        await impatient.enqueue([rollout])
        await until(lambda: runner.running)
        draining = asyncio.create_task(runner.drain())
        await asyncio.sleep(0)
        # For this one it is an hour later: the lease has run out, although the runner is well.
        async with await SqliteStore.open(impatient.path, clock=lambda: now_ns() + 3600 * 10**9) as other:
            (lease,) = await other.lease("other")
            await other.finish(lease.attempt.id, AttemptState.SUCCEEDED)
        go.set()
        await asyncio.wait_for(draining, 20)
        assert runner.statistics.unwritten == 1
        assert runner.statistics.succeeded == 0
    first, second = await attempts_at(impatient, rollout)
    assert (first.worker, first.cause) == ("cut off", FailureCause.LEASE_EXPIRED)
    assert (second.worker, second.state) == ("other", AttemptState.SUCCEEDED)
    assert f"The result of attempt {first.id} is dropped" in caplog.text


@pytest.mark.parametrize("hours", [-5, 5])
async def test_the_runners_own_clock_does_not_matter(tmp_path: Path, hours: int) -> None:
    async def team(task):
        await asyncio.sleep(0.7)
        return 1.0

    clock = lambda: now_ns() + hours * 3600 * 10**9  # noqa: E731
    async with await SqliteStore.open(tmp_path / "store.db", clock=clock) as store:
        await store.add_tasks([Task("t1", None)])
        rollout = Rollout("t1", mode=Mode.VAL)
        async with Runner(store, coterie.rollout(team), lease_seconds=0.5):
            await store.enqueue([rollout])
            (ended,) = await store.wait([rollout.id], timeout_seconds=20)
        assert ended.state is RolloutState.SUCCEEDED


async def test_stopping_while_it_is_away_leaves_the_work_to_the_lease_and_says_so(
    impatient: SqliteStore, caplog
) -> None:
    async def team(task):
        await asyncio.sleep(60)

    rollout = Rollout("t1", mode=Mode.VAL)
    runner = Runner(impatient, coterie.rollout(team))
    async with runner:
        await impatient.enqueue([rollout])
        await until(lambda: runner.running)
        with held(impatient):
            began = time.monotonic()
            await runner.stop(within_seconds=0.5)
            assert time.monotonic() - began < 5
    assert "1 attempts were left without an end" in caplog.text
    (attempt,) = await attempts_at(impatient, rollout)
    assert attempt.state is AttemptState.RUNNING


async def test_an_idle_runner_ends_by_itself(impatient: SqliteStore) -> None:
    tries = 0

    async def team(task):
        nonlocal tries
        tries += 1
        mine = tries
        await asyncio.sleep(0.05)
        if mine == 1:
            raise ValueError("once more")
        return 1.0

    await impatient.enqueue([Rollout("t1", mode=Mode.VAL, max_attempts=2) for _ in range(5)])
    async with Runner(impatient, coterie.rollout(team), concurrency=2, idle_seconds=0) as runner:
        await asyncio.wait_for(runner.idle(), 20)
        assert runner.running == 0
        assert (runner.statistics.succeeded, runner.statistics.failed) == (5, 1)
