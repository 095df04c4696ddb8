"""The queue: leases, heartbeats, ends, retries, the dead letter, withdrawal, and waiting by notification."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from stores_under_test import Clock, OpenStore

from coterie.errors import ConfigError, LeaseLostError, NotFoundError, StoreError
from coterie.store.base import Store
from coterie.vocabulary import (
    AttemptState,
    FailureCause,
    Lease,
    Reward,
    Rollout,
    RolloutState,
    Span,
    Task,
)


async def queue(store: Store, count: int = 1, **fields: object) -> list[Rollout]:
    await store.add_tasks([Task("t", {"question": "?"}, "answer")])
    rollouts = [Rollout("t", **fields) for _ in range(count)]  # type: ignore[arg-type]
    await store.enqueue(rollouts)
    return rollouts


async def take(store: Store, worker: str = "w", **options: object) -> Lease:
    (lease,) = await store.lease(worker, **options)  # type: ignore[arg-type]
    return lease


async def state_of(store: Store, rollout: Rollout) -> RolloutState:
    return (await store.get_rollouts([rollout.id]))[0].state


def a_span(lease: Lease, number: int = 1) -> Span:
    return Span("a" * 32, f"{number:016x}", "chat", 1, 2, rollout_id=lease.rollout.id, attempt_id=lease.attempt.id)


async def test_a_lease_holds_all_that_a_worker_needs(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store)
    lease = await take(timed_store, "worker-1", lease_seconds=30)
    assert lease.task == Task("t", {"question": "?"}, "answer")
    assert lease.rollout.id == rollout.id
    assert lease.rollout.state is RolloutState.RUNNING
    assert (lease.attempt.number, lease.attempt.worker, lease.attempt.state) == (1, "worker-1", AttemptState.RUNNING)
    assert lease.attempt.started_ns == clock.now
    assert lease.attempt.lease_expires_ns == clock.now + 30_000_000_000
    assert await timed_store.get_attempts([rollout.id, "none"]) == {rollout.id: (lease.attempt,), "none": ()}
    assert list(await timed_store.get_rollouts([rollout.id])) == [lease.rollout]


async def test_the_oldest_is_leased_first_and_none_twice(store: Store) -> None:
    rollouts = await queue(store, 5)
    first = await store.lease("a", limit=2)
    second = await store.lease("b", limit=9)
    assert [lease.rollout.id for lease in (*first, *second)] == [rollout.id for rollout in rollouts]
    assert list(await store.lease("c")) == []


async def test_a_worker_may_ask_for_one_run_only(store: Store) -> None:
    await queue(store, 1, run_id="other")
    (mine,) = await queue(store, 1, run_id="mine")
    assert (await take(store, run_id="mine")).rollout.id == mine.id
    assert list(await store.lease("w", run_id="mine")) == []


async def test_work_that_is_begun_never_waits_for_other_workers(store: Store) -> None:
    await store.add_tasks([Task("t", {"question": "?"}, "answer")])
    waiting = asyncio.create_task(store.lease("other", wait_seconds=0.3))
    await asyncio.sleep(0.05)
    rollout = Rollout("t")
    lease = await store.begin(rollout, "mine", lease_seconds=30)
    assert (lease.rollout.id, lease.rollout.state) == (rollout.id, RolloutState.RUNNING)
    assert (lease.attempt.number, lease.attempt.worker, lease.task.reference) == (1, "mine", "answer")
    assert list(await waiting) == []
    assert (await store.begin(rollout, "mine")).attempt.id == lease.attempt.id
    with pytest.raises(StoreError, match="id of its own"):
        await store.begin(rollout, "other")
    with pytest.raises(NotFoundError):
        await store.begin(Rollout("none"), "mine")
    assert (await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)).state is RolloutState.SUCCEEDED


async def test_success_ends_a_rollout_with_its_spans_and_rewards(store: Store) -> None:
    (rollout,) = await queue(store)
    lease = await take(store)
    reward = Reward(rollout.id, lease.attempt.id, 1.0)
    ended = await store.finish(
        lease.attempt.id,
        AttemptState.SUCCEEDED,
        spans=[a_span(lease)],
        rewards=[reward],
        warnings=["no trainable call"],
    )
    assert ended.state is RolloutState.SUCCEEDED
    assert ended.finished_ns is not None
    assert list(await store.get_rollouts([rollout.id])) == [ended]
    (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
    assert (attempt.state, attempt.warnings, attempt.cause) == (AttemptState.SUCCEEDED, ("no trainable call",), None)
    assert (await store.get_spans([attempt.id]))[attempt.id] == (a_span(lease),)
    assert (await store.get_rewards([attempt.id]))[attempt.id] == (reward,)


async def test_ending_twice_the_same_way_changes_nothing(store: Store) -> None:
    await queue(store)
    lease = await take(store)
    reward = Reward(lease.rollout.id, lease.attempt.id, 1.0)
    first = await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[a_span(lease)], rewards=[reward])
    again = await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[a_span(lease)], rewards=[reward])
    assert again == first
    assert len((await store.list_spans()).items) == 1
    assert len((await store.get_rewards([lease.attempt.id]))[lease.attempt.id]) == 1


async def test_ending_otherwise_is_refused_but_keeps_the_spans(store: Store) -> None:
    (rollout,) = await queue(store)
    lease = await take(store)
    await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)
    reward = Reward(lease.rollout.id, lease.attempt.id, 1.0)
    with pytest.raises(LeaseLostError, match="succeeded"):
        await store.finish(lease.attempt.id, AttemptState.FAILED, spans=[a_span(lease)], rewards=[reward])
    assert await state_of(store, rollout) is RolloutState.SUCCEEDED
    assert len((await store.get_spans([lease.attempt.id]))[lease.attempt.id]) == 1
    assert not (await store.get_rewards([lease.attempt.id]))[lease.attempt.id]


async def test_failure_is_tried_again_up_to_the_limit_then_dead_with_a_reason(store: Store) -> None:
    (rollout,) = await queue(store, max_attempts=2)
    first = await take(store)
    back = await store.finish(
        first.attempt.id, AttemptState.FAILED, cause=FailureCause.ERROR, error="ValueError: no\nat 3"
    )
    assert (back.state, back.reason, back.finished_ns) == (RolloutState.QUEUED, None, None)
    second = await take(store)
    assert (second.rollout.id, second.attempt.number) == (rollout.id, 2)
    dead = await store.finish(
        second.attempt.id, AttemptState.FAILED, cause=FailureCause.ERROR, error="KeyError: 'x'\nat 4"
    )
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "KeyError: 'x'" in dead.reason
    assert "2 allowed attempts" in dead.reason
    assert list(await store.lease("w")) == []
    attempts = (await store.get_attempts([rollout.id]))[rollout.id]
    assert [(attempt.cause, attempt.error) for attempt in attempts] == [
        (FailureCause.ERROR, "ValueError: no\nat 3"),
        (FailureCause.ERROR, "KeyError: 'x'\nat 4"),
    ]


async def test_a_failure_that_must_not_be_retried_is_dead_at_once(store: Store) -> None:
    await queue(store, max_attempts=5, deadline_seconds=2.0)
    lease = await take(store)
    dead = await store.finish(lease.attempt.id, AttemptState.FAILED, cause=FailureCause.DEADLINE, retry=False)
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "its deadline" in dead.reason


async def test_an_attempt_that_is_given_back_does_not_count(store: Store) -> None:
    (rollout,) = await queue(store, max_attempts=1)
    lease = await take(store)
    back = await store.finish(lease.attempt.id, AttemptState.CANCELLED)
    assert back.state is RolloutState.QUEUED
    again = await take(store)
    assert again.attempt.number == 2
    given_up = await store.finish(again.attempt.id, AttemptState.CANCELLED, error="stopped by user", retry=False)
    assert given_up.state is RolloutState.CANCELLED
    assert given_up.reason is not None
    assert "stopped by user" in given_up.reason
    assert await state_of(store, rollout) is RolloutState.CANCELLED


async def test_only_failures_count_towards_the_limit(store: Store) -> None:
    await queue(store, max_attempts=2)
    states = []
    for state in (AttemptState.CANCELLED, AttemptState.FAILED, AttemptState.CANCELLED, AttemptState.FAILED):
        lease = await take(store)
        states.append((await store.finish(lease.attempt.id, state)).state)
    assert states == [RolloutState.QUEUED] * 3 + [RolloutState.DEAD]


async def test_an_end_with_a_reward_for_nothing_writes_nothing(store: Store) -> None:
    (rollout,) = await queue(store)
    lease = await take(store)
    with pytest.raises(NotFoundError, match="at-none"):
        await store.finish(
            lease.attempt.id, AttemptState.SUCCEEDED, spans=[a_span(lease)], rewards=[Reward(rollout.id, "at-none", 1)]
        )
    assert not (await store.list_spans()).items
    assert await state_of(store, rollout) is RolloutState.RUNNING


async def test_finish_refuses_nonsense(store: Store) -> None:
    await queue(store)
    lease = await take(store)
    with pytest.raises(StoreError, match="running"):
        await store.finish(lease.attempt.id, AttemptState.RUNNING)
    with pytest.raises(NotFoundError, match="at-none"):
        await store.finish("at-none", AttemptState.SUCCEEDED, spans=[a_span(lease)])
    assert not (await store.list_spans()).items


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_a_lease_must_last_some_time(store: Store, seconds: float) -> None:
    with pytest.raises(ConfigError, match="lease_seconds"):
        await store.lease("w", lease_seconds=seconds)
    with pytest.raises(ConfigError, match="lease_seconds"):
        await store.heartbeat(["a"], lease_seconds=seconds)
    with pytest.raises(StoreError, match="limit"):
        await store.lease("w", limit=0)


async def test_a_lease_that_runs_out_goes_back_to_the_queue(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store, max_attempts=2)
    lost = await take(timed_store, "lost", lease_seconds=10)
    clock.advance(9.9)
    assert list(await timed_store.lease("next")) == []
    clock.advance(0.2)
    again = await take(timed_store, "next")
    assert (again.rollout.id, again.attempt.number) == (rollout.id, 2)
    expired, running = (await timed_store.get_attempts([rollout.id]))[rollout.id]
    assert (expired.state, expired.cause) == (AttemptState.FAILED, FailureCause.LEASE_EXPIRED)
    assert running == again.attempt
    assert await timed_store.heartbeat([lost.attempt.id, again.attempt.id]) == {again.attempt.id}
    with pytest.raises(LeaseLostError, match="lease_expired"):
        await timed_store.finish(lost.attempt.id, AttemptState.SUCCEEDED, spans=[a_span(lost)])
    assert len((await timed_store.get_spans([lost.attempt.id]))[lost.attempt.id]) == 1
    assert await state_of(timed_store, rollout) is RolloutState.RUNNING


async def test_the_last_lease_that_runs_out_is_the_dead_letter(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store)
    await take(timed_store, "w-7", lease_seconds=10)
    clock.advance(11)
    assert list(await timed_store.lease("next")) == []
    (dead,) = await timed_store.get_rollouts([rollout.id])
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "w-7" in dead.reason
    assert "heartbeat" in dead.reason


async def test_heartbeats_prolong_a_lease(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store)
    lease = await take(timed_store, lease_seconds=10)
    for _ in range(5):
        clock.advance(8)
        assert await timed_store.heartbeat([lease.attempt.id], lease_seconds=10) == {lease.attempt.id}
        assert list(await timed_store.lease("thief")) == []
    assert (await timed_store.finish(lease.attempt.id, AttemptState.SUCCEEDED)).id == rollout.id


async def test_withdrawing_ends_rollouts_and_takes_their_leases(store: Store) -> None:
    running, queued, ended = await queue(store, 3)
    lease = await take(store)
    done = [lease_ for lease_ in await store.lease("w", limit=9) if lease_.rollout.id == ended.id]
    await store.finish(done[0].attempt.id, AttemptState.SUCCEEDED)
    await store.cancel([running.id, queued.id, ended.id], reason="the budget is spent")
    states = {rollout.id: rollout for rollout in await store.get_rollouts([running.id, queued.id, ended.id])}
    assert states[running.id].state is states[queued.id].state is RolloutState.CANCELLED
    assert states[running.id].reason == "the budget is spent"
    assert states[ended.id].state is RolloutState.SUCCEEDED
    assert await store.heartbeat([lease.attempt.id]) == frozenset()
    with pytest.raises(LeaseLostError, match="cancelled"):
        await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)
    assert list(await store.lease("w")) == []
    with pytest.raises(NotFoundError, match="ro-none"):
        await store.cancel(["ro-none"])


async def test_who_waits_for_work_is_woken_by_it(store: Store) -> None:
    await store.add_tasks([Task("t", 1)])
    workers = [asyncio.create_task(store.lease(f"w{number}", wait_seconds=20)) for number in range(5)]
    await asyncio.sleep(0.3)
    started = time.monotonic()
    await queue(store, 5)
    leases = [lease for taken in await asyncio.gather(*workers) for lease in taken]
    assert time.monotonic() - started < 5
    assert len({lease.rollout.id for lease in leases}) == 5


async def test_waiting_for_work_ends_when_the_time_is_up(store: Store) -> None:
    started = time.monotonic()
    assert list(await store.lease("w", wait_seconds=0.3)) == []
    assert 0.25 < time.monotonic() - started < 5


async def test_who_waits_for_work_gets_what_comes_back(store: Store) -> None:
    await queue(store, max_attempts=2)
    lease = await take(store)
    waiting = asyncio.create_task(store.lease("next", wait_seconds=20))
    await asyncio.sleep(0.2)
    await store.finish(lease.attempt.id, AttemptState.FAILED)
    (again,) = await waiting
    assert again.attempt.number == 2


async def test_who_waits_for_work_gets_a_lease_that_runs_out_meanwhile(store: Store) -> None:
    await queue(store, max_attempts=2)
    await take(store, lease_seconds=0.3)
    (again,) = await store.lease("next", wait_seconds=20)
    assert again.attempt.number == 2


async def test_work_that_is_taken_for_a_caller_that_is_gone_goes_back(store: Store) -> None:
    (rollout,) = await queue(store, max_attempts=1)
    for delay in (0, 0.0001, 0.0005, 0.001, 0.002, 0.004, 0.008):
        waiting = asyncio.create_task(store.lease("gone", lease_seconds=600))
        await asyncio.sleep(delay)
        waiting.cancel()
        try:
            leases: Sequence[Lease] = await waiting
        except asyncio.CancelledError:
            leases = await store.lease("next", wait_seconds=20)
        assert [lease.rollout.id for lease in leases] == [rollout.id]
        await store.finish(leases[0].attempt.id, AttemptState.CANCELLED)


async def test_who_waits_for_rollouts_is_woken_by_their_end(store: Store) -> None:
    first, second, third = await queue(store, 3)
    waiting = asyncio.create_task(store.wait([third.id, first.id, second.id]))
    leases = await store.lease("w", limit=2)
    await store.finish(leases[0].attempt.id, AttemptState.SUCCEEDED)
    await store.finish(leases[1].attempt.id, AttemptState.FAILED)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await store.cancel([third.id])
    async with asyncio.timeout(10):
        ended = await waiting
    assert [(rollout.id, rollout.state) for rollout in ended] == [
        (third.id, RolloutState.CANCELLED),
        (first.id, RolloutState.SUCCEEDED),
        (second.id, RolloutState.DEAD),
    ]


async def test_who_waits_for_rollouts_of_which_some_have_ended_is_woken_by_the_rest(store: Store) -> None:
    first, second = await queue(store, 2)
    leases = await store.lease("w", limit=2, lease_seconds=60)
    await store.finish(leases[0].attempt.id, AttemptState.SUCCEEDED)
    waiting = asyncio.create_task(store.wait([first.id, second.id]))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await store.finish(leases[1].attempt.id, AttemptState.SUCCEEDED)
    async with asyncio.timeout(10):
        ended = await waiting
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}


async def test_waiting_for_rollouts_ends_when_the_time_is_up(store: Store) -> None:
    (rollout,) = await queue(store)
    started = time.monotonic()
    (still,) = await store.wait([rollout.id], timeout_seconds=0.3)
    assert 0.25 < time.monotonic() - started < 5
    assert still == rollout
    assert list(await store.wait([])) == []
    with pytest.raises(NotFoundError, match="ro-none"):
        await store.wait([rollout.id, "ro-none"], timeout_seconds=20)


async def test_waiting_sees_a_worker_die_though_nobody_asks_for_work(store: Store) -> None:
    (rollout,) = await queue(store)
    await take(store, lease_seconds=0.3)
    (dead,) = await store.wait([rollout.id], timeout_seconds=20)
    assert dead.state is RolloutState.DEAD


async def test_many_leases_that_ran_out_are_all_taken_back(timed_store: Store, clock: Clock) -> None:
    rollouts = await queue(timed_store, 1100, max_attempts=2)
    assert len(await timed_store.lease("lost", limit=2000, lease_seconds=10)) == 1100
    clock.advance(11)
    await timed_store.check()
    again: list[Lease] = []
    for _ in range(4):
        again += await timed_store.lease("next", limit=2000)
    assert {lease.rollout.id for lease in again} == {rollout.id for rollout in rollouts}
    assert len(again) == 1100


async def test_closing_ends_waiting(open_store: OpenStore) -> None:
    store = await open_store("other")
    waiting = asyncio.create_task(store.lease("w", wait_seconds=60))
    await asyncio.sleep(0.2)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        async with asyncio.timeout(10):
            await waiting
    with pytest.raises(StoreError, match="closed"):
        await store.add_tasks([Task("t", 1)])
    with pytest.raises(StoreError, match="closed"):
        await store.list_tasks()
    with pytest.raises(StoreError, match="closed"):
        await store.check()
    await store.close()


async def test_a_request_for_work_that_is_repeated_gives_the_same_leases(store: Store) -> None:
    await queue(store, 4)
    first = await store.lease("w", limit=3, request_id="r1")
    assert list(await store.lease("w", limit=3, request_id="r1")) == list(first)
    assert [lease.attempt.id for lease in first] == ["at-r1-0", "at-r1-1", "at-r1-2"]
    await store.finish(first[1].attempt.id, AttemptState.SUCCEEDED)
    assert list(await store.lease("w", limit=3, request_id="r1")) == [first[0], first[2]]
    assert list(await store.lease("another", limit=3, request_id="r1")) == []
    assert len(await store.lease("w", limit=3, request_id="r2")) == 1


async def test_a_request_for_work_that_was_taken_back_may_come_again(store: Store) -> None:
    (rollout,) = await queue(store)
    for number in range(3):
        (lease,) = await store.lease("w", request_id="r1")
        assert (lease.rollout.id, lease.attempt.id) == (rollout.id, f"at-r1-{number}")
        await store.finish(lease.attempt.id, AttemptState.CANCELLED)
