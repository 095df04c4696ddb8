"""Removing what is old or too much: what goes, what stays, and that the disk gets its room back."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from stores_under_test import Clock

from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.store.retention import Pruned, Retention
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import AttemptState, Metrics, Mode, Reward, Rollout, RolloutState, Run, Span, Task

SECOND = 1_000_000_000


def a_span(number: int, at_ns: int, *, size: int = 10, rollout: str | None = None, attempt: str | None = None) -> Span:
    return Span(
        f"{number // 1000:032x}",
        f"{number:016x}",
        "chat",
        at_ns - 1,
        at_ns,
        rollout_id=rollout,
        attempt_id=attempt,
        # Of a kind that cannot be compressed.
        attributes={"text": random.Random(number).randbytes(size // 2).hex()},
    )


async def an_ended(
    store: Store, now: int, number: int, mode: Mode = Mode.TRAIN, *, spans: int = 2, size: int = 10
) -> str:
    """A rollout that has ended, with an attempt, some spans and a reward."""
    await store.add_tasks([Task("t", 1)])
    lease = await store.begin(Rollout("t", mode), "w")
    await store.finish(
        lease.attempt.id,
        AttemptState.SUCCEEDED,
        spans=[
            a_span(1000 * number + at, now, size=size, rollout=lease.rollout.id, attempt=lease.attempt.id)
            for at in range(spans)
        ],
        rewards=[Reward(lease.rollout.id, lease.attempt.id, 1.0)],
    )
    return lease.rollout.id


async def present(store: Store) -> set[str]:
    return {rollout.id for rollout in (await store.list_rollouts()).items}


async def test_what_is_too_old_goes_with_all_that_belongs_to_it(timed_store: Store, clock: Clock) -> None:
    await an_ended(timed_store, clock.now, 1)
    await timed_store.add_spans([a_span(1, clock.now, rollout="ro-elsewhere")])
    clock.advance(10)
    late = await an_ended(timed_store, clock.now, 2)
    await timed_store.add_spans([a_span(2, clock.now)])
    clock.advance(5)
    pruned = await timed_store.prune(Retention(max_age_seconds=10))
    assert replace(pruned, bytes_before=0, bytes_after=0) == Pruned(rollouts=1, attempts=1, spans=3, rewards=1)
    assert pruned.bytes_before > 0
    assert pruned.bytes_after > 0
    assert await present(timed_store) == {late}
    statistics = await timed_store.statistics()
    assert [statistics[name] for name in ("rollouts", "attempts", "spans", "rewards", "tasks")] == [1, 1, 3, 1, 1]
    assert (await timed_store.prune(Retention(max_age_seconds=10))).spans == 0


async def test_age_counts_from_the_end(timed_store: Store, clock: Clock) -> None:
    await timed_store.add_tasks([Task("t", 1)])
    queued, running, ended = [Rollout("t", created_ns=1) for _ in range(3)]
    await timed_store.enqueue([queued])
    await timed_store.begin(running, "w", lease_seconds=10**6)
    lease = await timed_store.begin(ended, "w", lease_seconds=10**6)
    clock.advance(1000)
    await timed_store.finish(lease.attempt.id, AttemptState.FAILED)
    assert (await timed_store.prune(Retention(max_age_seconds=1))).rollouts == 0
    clock.advance(2)
    assert (await timed_store.prune(Retention(max_age_seconds=1))).rollouts == 1
    assert await present(timed_store) == {queued.id, running.id}


async def test_modes_that_are_kept_stay(timed_store: Store, clock: Clock) -> None:
    kept = {await an_ended(timed_store, clock.now, number, Mode.TEST) for number in range(3)}
    await an_ended(timed_store, clock.now, 4, Mode.VAL)
    clock.advance(100)
    pruned = await timed_store.prune(Retention(max_age_seconds=1, max_bytes=0, keep_modes=(Mode.TEST,)))
    assert (pruned.rollouts, pruned.spans) == (1, 2)
    assert await present(timed_store) == kept


async def test_no_limit_removes_nothing(timed_store: Store, clock: Clock) -> None:
    await an_ended(timed_store, clock.now, 1)
    clock.advance(10**6)
    pruned = await timed_store.prune(Retention())
    assert (pruned.rollouts, pruned.spans) == (0, 0)
    assert await present(timed_store) != set()


async def test_what_ended_first_goes_first_until_the_rest_fits(timed_store: Store, clock: Clock) -> None:
    ids = []
    for number in range(1, 61):
        ids.append(await an_ended(timed_store, clock.now, number, spans=5, size=8000))
        await timed_store.add_spans([a_span(number, clock.now + 1, size=8000)])
        clock.advance(1)
    said = 60 * 6 * 8000
    pruned = await timed_store.prune(Retention(max_bytes=said * 2 // 3))
    assert 20 <= pruned.rollouts <= 50
    assert await present(timed_store) == set(ids[pruned.rollouts :])
    loose = [int(span.span_id, 16) for span in (await timed_store.list_spans()).items if span.rollout_id is None]
    # Spans of no rollout go in the same order, between the rollouts.
    assert loose == list(range(loose[0], 61))
    assert abs(loose[0] - pruned.rollouts) <= 2
    assert pruned.spans == 5 * pruned.rollouts + loose[0] - 1
    assert (await timed_store.prune(Retention(max_bytes=said * 2 // 3))).rollouts == 0


async def test_more_than_fits_into_one_transaction(timed_store: Store, clock: Clock) -> None:
    await timed_store.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t") for _ in range(250)]
    await timed_store.enqueue(rollouts)
    await timed_store.cancel([rollout.id for rollout in rollouts])
    await timed_store.add_spans([a_span(number, clock.now + number) for number in range(4500)])
    clock.advance(100)
    pruned = await timed_store.prune(Retention(max_age_seconds=1))
    assert (pruned.rollouts, pruned.spans) == (250, 4500)


async def test_others_write_while_it_goes_on(timed_store: Store, clock: Clock) -> None:
    await timed_store.add_tasks([Task("t", 1)])
    old = [Rollout("t") for _ in range(400)]
    await timed_store.enqueue(old)
    await timed_store.cancel([rollout.id for rollout in old])
    clock.advance(100)

    async def write() -> list[str]:
        fresh = [Rollout("t") for _ in range(20)]
        for number, rollout in enumerate(fresh):
            await timed_store.enqueue([rollout])
            await timed_store.add_spans([a_span(10**6 + number, clock.now)])
        return [rollout.id for rollout in fresh]

    pruned, fresh, both = await asyncio.gather(
        timed_store.prune(Retention(max_age_seconds=1)), write(), timed_store.prune(Retention(max_age_seconds=1))
    )
    assert pruned.rollouts + both.rollouts == 400
    assert await present(timed_store) == set(fresh)
    assert len((await timed_store.list_spans()).items) == 20


async def test_tasks_resources_and_runs_are_kept(timed_store: Store, clock: Clock) -> None:
    await an_ended(timed_store, clock.now, 1)
    await timed_store.save_run(Run("r", "train", "n", {}))
    await timed_store.add_metrics([Metrics("r", 1, {"loss": 1.0})])
    clock.advance(100)
    await timed_store.prune(Retention(max_age_seconds=1, max_bytes=0))
    statistics = await timed_store.statistics()
    assert [statistics[name] for name in ("tasks", "runs", "metrics", "rollouts")] == [1, 1, 1, 0]


@pytest.mark.parametrize("fields", [{"max_age_seconds": -1}, {"max_age_seconds": float("nan")}, {"max_bytes": -5}])
def test_a_retention_that_makes_no_sense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Retention(**fields)  # type: ignore[arg-type]


# The file


def a_file_that_keeps_free_pages(path: Path) -> None:
    """As files were made before."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("CREATE TABLE no_more (a)")
    connection.execute("DROP TABLE no_more")
    connection.commit()
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("older", [False, True])
async def test_the_disk_gets_its_room_back(tmp_path: Path, older: bool) -> None:
    path = tmp_path / "store.db"
    if older:
        a_file_that_keeps_free_pages(path)
    clock = Clock()
    store = await SqliteStore.open(path, clock=clock)
    for number in range(1, 31):
        await an_ended(store, clock.now, number, spans=10, size=10_000)
        clock.advance(1)
    last = (await store.list_rollouts(after=(await store.list_rollouts(limit=29)).cursor)).items[0]
    pruned = await store.prune(Retention(max_age_seconds=1.5))
    assert pruned.rollouts == 29
    assert pruned.bytes_before > 3_000_000
    assert pruned.bytes_after < 1_000_000
    assert path.stat().st_size < 1_000_000
    # It goes on as if nothing had been.
    assert [rollout.id for rollout in (await store.list_rollouts()).items] == [last.id]
    await an_ended(store, clock.now, 99)
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()


async def test_a_reader_does_not_keep_rollouts_from_being_removed(tmp_path: Path) -> None:
    path = tmp_path / "read.db"
    clock = Clock()
    store = await SqliteStore.open(path, clock=clock, lock_timeout_seconds=0.2)
    await an_ended(store, clock.now, 1, size=100_000)
    clock.advance(10)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (1,)
    assert (await store.prune(Retention(max_age_seconds=1))).rollouts == 1
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (1,)
    reader.execute("ROLLBACK")
    assert reader.execute("SELECT count(*) FROM rollouts").fetchone() == (0,)
    reader.close()
    assert (await store.list_rollouts(state=RolloutState.SUCCEEDED)).items == ()
    await store.close()
