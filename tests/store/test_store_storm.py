"""Workers that fail, crash, hang and go away, and operators who interfere, all at once and in real time."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from stores_under_test import OpenStore

from coterie.errors import LeaseLostError, StoreError
from coterie.store.base import Store
from coterie.store.groups import completed_groups
from coterie.vocabulary import AttemptState, FailureCause, Lease, RetryPolicy, Rollout, RolloutState, Span, Task

SECONDS = 1.5
"""How long it lasts; after that the workers do all that is left."""
LEASE_SECONDS = 0.3


@dataclass
class Storm:
    random: random.Random = field(default_factory=lambda: random.Random(7))
    began: float = field(default_factory=time.monotonic)
    over: bool = False
    """All work has ended; the workers may go."""
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Attempts whose success the store acknowledged, with their rollouts."""
    taken: Counter[str] = field(default_factory=Counter)

    @property
    def raging(self) -> bool:
        return time.monotonic() < self.began + SECONDS

    def chance(self, share: float) -> bool:
        return self.random.random() < share


async def worker(store: Store, name: str, storm: Storm) -> None:
    while not storm.over:
        call = asyncio.create_task(
            store.lease(name, limit=storm.random.randint(1, 3), lease_seconds=LEASE_SECONDS, wait_seconds=0.2)
        )
        if storm.raging and storm.chance(0.2):
            await asyncio.sleep(storm.random.choice([0, 0.001, 0.01]))
            call.cancel()
        leases: list[Lease] = []
        with suppress(asyncio.CancelledError):
            leases = list(await call)
        for lease in leases:
            storm.taken[lease.attempt.id] += 1
            with suppress(LeaseLostError):
                await attempt(store, lease, storm)


async def attempt(store: Store, lease: Lease, storm: Storm) -> None:
    id_ = lease.attempt.id
    if storm.raging:
        if storm.chance(0.1):
            return  # It crashed: nobody hears of it again.
        if storm.chance(0.15):
            await asyncio.sleep(LEASE_SECONDS * 1.5)  # It hangs, and ends too late.
        if storm.chance(0.2):
            await asyncio.sleep(LEASE_SECONDS / 2)
            if not await store.heartbeat([id_], lease_seconds=LEASE_SECONDS):
                return
        if storm.chance(0.1):
            await store.finish(id_, AttemptState.CANCELLED, retry=storm.chance(0.8))
            return
        if storm.chance(0.4):
            cause = storm.random.choice([FailureCause.ERROR, FailureCause.DEADLINE])
            await store.finish(id_, AttemptState.FAILED, cause=cause, retry=storm.chance(0.9))
            return
    spans = [Span(id_[-20:].rjust(32, "0"), "1" * 16, "chat", 1, 2, lease.rollout.id, attempt_id=id_)]
    ended = await store.finish(id_, AttemptState.SUCCEEDED, spans=spans)
    assert ended.state is RolloutState.SUCCEEDED
    storm.acknowledged[id_] = lease.rollout.id
    if storm.chance(0.2):
        assert (await store.finish(id_, AttemptState.SUCCEEDED, spans=spans)).state is RolloutState.SUCCEEDED


async def operator(store: Store, ids: list[str], storm: Storm) -> None:
    while storm.raging:
        await asyncio.sleep(0.03)
        some = storm.random.sample(ids, 3)
        if storm.chance(0.3):
            await store.cancel(some[:1], reason="a whim")
        # One of them may have succeeded.
        with suppress(StoreError):
            await store.requeue(some, attempts=2)
    for id_ in ids:
        with suppress(StoreError):
            await store.requeue([id_], attempts=50)


async def test_a_storm(open_store: OpenStore) -> None:
    stores = [await open_store("stormy"), await open_store("stormy")]
    store = stores[0]
    await store.add_tasks([Task("t", 1)])
    storm = Storm()
    rollouts = [
        Rollout(
            "t",
            group_id=str(number % 10),
            max_attempts=4,
            retry=RetryPolicy({FailureCause.DEADLINE: 2}, delay_seconds=0.02, max_delay_seconds=0.1),
        )
        for number in range(60)
    ]
    ids = [rollout.id for rollout in rollouts]
    workers = [asyncio.create_task(worker(stores[n % 2], f"w{n}", storm)) for n in range(8)]
    await stores[1].enqueue(rollouts)
    await operator(store, ids, storm)
    groups = {str(name): [r.id for r in rollouts if r.group_id == str(name)] for name in range(10)}
    completed = [name async for name, _ in completed_groups(stores[1], groups, timeout_seconds=60)]
    storm.over = True
    await asyncio.wait_for(asyncio.gather(*workers), 30)

    assert sorted(completed) == sorted(groups)
    kept = await store.get_rollouts(ids)
    attempts = await stores[1].get_attempts(ids)
    assert all(rollout.state.terminal for rollout in kept)
    for rollout in kept:
        tried = attempts[rollout.id]
        assert [one.number for one in tried] == list(range(1, len(tried) + 1))
        assert all(one.state is not AttemptState.RUNNING for one in tried)
        succeeded = [one.id for one in tried if one.state is AttemptState.SUCCEEDED]
        assert len(succeeded) == (1 if rollout.state is RolloutState.SUCCEEDED else 0)
        assert (rollout.reason is None) == (rollout.state is RolloutState.SUCCEEDED)
    # What was acknowledged is so, what was not is not; and no attempt was given to two workers.
    assert storm.acknowledged == {
        one.id: one.rollout_id for tried in attempts.values() for one in tried if one.state is AttemptState.SUCCEEDED
    }
    assert set(storm.taken.values()) == {1}
    assert len(storm.acknowledged) > len(ids) // 2
    seen = await store.get_spans(list(storm.acknowledged))
    assert {len(spans) for spans in seen.values()} == {1}
    causes = Counter(one.cause for tried in attempts.values() for one in tried)
    # It was one.
    assert causes[FailureCause.LEASE_EXPIRED] > 0
    assert causes[FailureCause.ERROR] > 0
    with_cancelled = sum(one.state is AttemptState.CANCELLED for tried in attempts.values() for one in tried)
    assert with_cancelled > 0
    await store.delete_rollouts(ids)
    assert (await store.statistics())["attempts"] == 0
