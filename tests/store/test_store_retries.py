"""Retries by cause, delays, dead letters that come back, removal, groups, and a clock that is set."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from stores_under_test import Clock, OpenStore

from coterie.errors import LeaseLostError, NotFoundError, StoreError
from coterie.store.base import Store
from coterie.store.groups import completed_groups
from coterie.vocabulary import (
    AttemptState,
    FailureCause,
    Lease,
    RetryPolicy,
    Reward,
    Rollout,
    RolloutState,
    Span,
    Task,
    now_ns,
)

SECOND = 1_000_000_000


async def queue(store: Store, count: int = 1, **fields: object) -> list[Rollout]:
    await store.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t", **fields) for _ in range(count)]  # type: ignore[arg-type]
    await store.enqueue(rollouts)
    return rollouts


async def take(store: Store, **options: object) -> Lease:
    (lease,) = await store.lease("w", **options)  # type: ignore[arg-type]
    return lease


async def fail(store: Store, cause: FailureCause = FailureCause.ERROR) -> Rollout:
    lease = await take(store)
    return await store.finish(lease.attempt.id, AttemptState.FAILED, cause=cause, error="KeyError: 'x'")


async def the_only(store: Store) -> Rollout:
    (rollout,) = (await store.list_rollouts()).items
    return rollout


# Retry policy


async def test_a_policy_comes_back_as_it_was(store: Store) -> None:
    policy = RetryPolicy({FailureCause.DEADLINE: 2, FailureCause.BAD_REWARD: 1}, 1.5, 3.0, 60.0)
    (rollout,) = await queue(store, retry=policy, max_attempts=9, available_ns=now_ns() + 10**12)
    assert await the_only(store) == rollout
    assert rollout.retry == policy


async def test_a_cause_has_a_limit_of_its_own(store: Store) -> None:
    await queue(store, max_attempts=9, retry=RetryPolicy({FailureCause.DEADLINE: 2, FailureCause.BAD_REWARD: 1}))
    states = [(await fail(store, cause)).state for cause in (FailureCause.ERROR, FailureCause.DEADLINE)]
    assert states == [RolloutState.QUEUED] * 2
    dead = await fail(store, FailureCause.DEADLINE)
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "Attempt 3 ran longer than its deadline: KeyError: 'x'." in dead.reason
    assert "2 attempts to end as deadline" in dead.reason
    assert await the_only(store) == dead


async def test_the_limit_of_all_causes_holds_too(store: Store) -> None:
    await queue(store, max_attempts=2, retry=RetryPolicy({FailureCause.DEADLINE: 5}))
    assert (await fail(store)).state is RolloutState.QUEUED
    dead = await fail(store, FailureCause.DEADLINE)
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "last of 2 allowed attempts" in dead.reason


async def test_an_expired_lease_is_a_cause_like_others(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, max_attempts=9, retry=RetryPolicy({FailureCause.LEASE_EXPIRED: 1}))
    await take(timed_store, lease_seconds=10)
    clock.advance(11)
    assert list(await timed_store.lease("next")) == []
    dead = await the_only(timed_store)
    assert dead.state is RolloutState.DEAD
    assert dead.reason is not None
    assert "no heartbeat" in dead.reason
    assert "1 attempt to end as lease_expired" in dead.reason


async def test_each_further_attempt_is_put_off_longer_up_to_a_limit(timed_store: Store, clock: Clock) -> None:
    policy = RetryPolicy(delay_seconds=10, backoff=3, max_delay_seconds=50)
    await queue(timed_store, max_attempts=9, retry=policy)
    for delay in (10, 30, 50, 50):
        back = await fail(timed_store)
        assert (back.state, back.available_ns) == (RolloutState.QUEUED, clock.now + delay * SECOND)
        assert await the_only(timed_store) == back
        clock.advance(delay - 0.1)
        assert list(await timed_store.lease("early")) == []
        clock.advance(0.1)
    lease = await take(timed_store)
    assert lease.rollout.available_ns is None
    assert lease.attempt.number == 5


async def test_the_longest_delay_holds_for_any_number_of_attempts(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, max_attempts=99, retry=RetryPolicy(delay_seconds=1e-3, backoff=1e200))
    for _ in range(4):
        back = await fail(timed_store)
        clock.advance(300)
    assert back.available_ns == clock.now


async def test_what_is_given_back_unharmed_is_not_put_off(timed_store: Store) -> None:
    await queue(timed_store, max_attempts=9, retry=RetryPolicy(delay_seconds=10))
    lease = await take(timed_store)
    back = await timed_store.finish(lease.attempt.id, AttemptState.CANCELLED)
    assert back.available_ns is None
    assert (await take(timed_store)).attempt.number == 2


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy({FailureCause.ERROR: 0}),
        RetryPolicy({"tiredness": 2}),  # type: ignore[dict-item]
        RetryPolicy(delay_seconds=-1),
        RetryPolicy(delay_seconds=float("inf")),
        RetryPolicy(backoff=0.5),
        RetryPolicy(max_delay_seconds=float("nan")),
        RetryPolicy(delay_seconds="soon"),  # type: ignore[arg-type]
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(store: Store, policy: RetryPolicy) -> None:
    with pytest.raises(StoreError, match=r"retry\."):
        await queue(store, retry=policy)
    assert not (await store.list_rollouts()).items


# Scheduling


async def test_the_oldest_of_the_available_is_leased_first(timed_store: Store, clock: Clock) -> None:
    (late,) = await queue(timed_store, available_ns=clock.now + 20 * SECOND)
    (soon,) = await queue(timed_store, available_ns=clock.now + 10 * SECOND)
    (now,) = await queue(timed_store)
    (past,) = await queue(timed_store, available_ns=clock.now)
    taken = [lease.rollout.id for lease in await timed_store.lease("w", limit=9)]
    assert taken == [now.id, past.id]
    clock.advance(30)
    assert [lease.rollout.id for lease in await timed_store.lease("w", limit=9)] == [late.id, soon.id]


async def test_those_that_are_put_off_are_listed_among_the_queued_in_their_place(store: Store) -> None:
    rollouts = []
    for number in range(12):
        rollouts += await queue(store, available_ns=now_ns() + 10**12 if number % 3 else None, run_id="r")
    cursor: str | None = None
    seen: list[str] = []
    for _ in range(20):
        page = await store.list_rollouts(state=RolloutState.QUEUED, run_id="r", after=cursor, limit=5)
        assert 0 < len(page.items) <= 5
        seen += [rollout.id for rollout in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [rollout.id for rollout in rollouts]
    assert (await store.statistics())["rollouts_by_state"]["queued"] == 12


async def test_who_waits_for_work_is_woken_when_something_becomes_available(store: Store) -> None:
    waiting = asyncio.create_task(store.lease("w", wait_seconds=20))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await queue(store, available_ns=now_ns() + SECOND // 3)
    async with asyncio.timeout(10):
        (lease,) = await waiting
    assert 0.2 < time.monotonic() - started < 3
    assert lease.attempt.number == 1


async def test_who_waits_for_work_is_woken_for_the_next_attempt(store: Store) -> None:
    await queue(store, max_attempts=2, retry=RetryPolicy(delay_seconds=0.3))
    lease = await take(store)
    waiting = asyncio.create_task(store.lease("next", wait_seconds=20))
    await asyncio.sleep(0.05)
    await store.finish(lease.attempt.id, AttemptState.FAILED)
    started = time.monotonic()
    async with asyncio.timeout(10):
        (again,) = await waiting
    assert 0.2 < time.monotonic() - started < 3
    assert again.attempt.number == 2


async def test_what_is_put_off_can_be_withdrawn(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store, available_ns=clock.now + SECOND)
    await timed_store.cancel([rollout.id])
    clock.advance(10)
    assert list(await timed_store.lease("w")) == []
    assert replace(await the_only(timed_store), reason=None, finished_ns=None) == replace(
        rollout, state=RolloutState.CANCELLED, available_ns=None
    )


async def test_work_that_its_own_program_does_need_not_wait(timed_store: Store, clock: Clock) -> None:
    await timed_store.add_tasks([Task("t", 1)])
    lease = await timed_store.begin(Rollout("t", available_ns=clock.now + 10**15), "mine")
    assert lease.rollout.available_ns is None


# Dead letters that come back


async def test_a_dead_letter_comes_back_with_more_attempts(timed_store: Store, clock: Clock) -> None:
    policy = RetryPolicy({FailureCause.DEADLINE: 1, FailureCause.ERROR: 5}, delay_seconds=10)
    (rollout,) = await queue(timed_store, max_attempts=9, retry=policy)
    await fail(timed_store)
    clock.advance(10)
    assert (await fail(timed_store, FailureCause.DEADLINE)).state is RolloutState.DEAD
    await timed_store.requeue([rollout.id], attempts=2)
    back = await the_only(timed_store)
    assert (back.state, back.reason, back.finished_ns, back.available_ns) == (RolloutState.QUEUED, None, None, None)
    assert back.max_attempts == 4
    assert back.retry == replace(policy, by_cause={FailureCause.DEADLINE: 3, FailureCause.ERROR: 5})
    assert (await fail(timed_store, FailureCause.DEADLINE)).state is RolloutState.QUEUED
    clock.advance(300)
    assert (await fail(timed_store, FailureCause.DEADLINE)).state is RolloutState.DEAD
    assert [a.number for a in (await timed_store.get_attempts([rollout.id]))[rollout.id]] == [1, 2, 3, 4]


async def test_requeueing_again_changes_nothing(store: Store) -> None:
    (rollout,) = await queue(store)
    await fail(store)
    await store.requeue([rollout.id])
    before = await the_only(store)
    await store.requeue([rollout.id], attempts=7)
    assert await the_only(store) == before
    lease = await take(store)
    await store.requeue([rollout.id])
    assert await store.heartbeat([lease.attempt.id])


async def test_requeueing_is_all_or_nothing(store: Store) -> None:
    dead, done = await queue(store, 2)
    await fail(store)
    await store.finish((await take(store)).attempt.id, AttemptState.SUCCEEDED)
    with pytest.raises(StoreError, match=f"{done.id}.*succeeded"):
        await store.requeue([dead.id, done.id])
    with pytest.raises(NotFoundError, match="ro-none"):
        await store.requeue([dead.id, "ro-none"])
    with pytest.raises(StoreError, match="attempts is 0"):
        await store.requeue([dead.id], attempts=0)
    states = [rollout.state for rollout in await store.get_rollouts([dead.id, done.id])]
    assert states == [RolloutState.DEAD, RolloutState.SUCCEEDED]


async def test_the_worker_of_a_withdrawn_attempt_cannot_end_the_one_after(store: Store) -> None:
    (rollout,) = await queue(store)
    old = await take(store)
    await store.cancel([rollout.id])
    await store.requeue([rollout.id])
    new = await take(store)
    assert await store.heartbeat([old.attempt.id, new.attempt.id]) == {new.attempt.id}
    with pytest.raises(LeaseLostError):
        await store.finish(old.attempt.id, AttemptState.SUCCEEDED)
    await store.finish(old.attempt.id, AttemptState.CANCELLED)
    assert (await the_only(store)).state is RolloutState.RUNNING
    assert (await store.finish(new.attempt.id, AttemptState.SUCCEEDED)).state is RolloutState.SUCCEEDED


async def test_who_waits_for_work_gets_a_dead_letter_that_comes_back(store: Store) -> None:
    (rollout,) = await queue(store)
    await fail(store)
    waiting = asyncio.create_task(store.lease("w", wait_seconds=20))
    await asyncio.sleep(0.1)
    await store.requeue([rollout.id])
    async with asyncio.timeout(10):
        assert [lease.rollout.id for lease in await waiting] == [rollout.id]


# Removal


def a_span(lease: Lease, number: int, **fields: object) -> Span:
    span = Span("a" * 32, f"{number:016x}", "chat", 1, 2, rollout_id=lease.rollout.id, attempt_id=lease.attempt.id)
    return replace(span, **fields)  # type: ignore[arg-type]


async def test_an_ended_rollout_is_removed_with_all_that_belongs_to_it(store: Store) -> None:
    gone, stays = await queue(store, 2)
    for lease in await store.lease("w", limit=2):
        number = 1 if lease.rollout.id == gone.id else 5
        rewards = [Reward(lease.rollout.id, lease.attempt.id, 1.0)]
        spans = [a_span(lease, number), a_span(lease, number + 1, rollout_id=None)]
        await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=spans, rewards=rewards)
    await store.add_spans([Span("a" * 32, "f" * 16, "chat", 1, 2)])
    await store.delete_rollouts([gone.id, "ro-none"])
    await store.delete_rollouts([gone.id])
    assert [rollout.id for rollout in (await store.list_rollouts()).items] == [stays.id]
    assert {int(span.span_id, 16) for span in (await store.list_spans()).items} == {5, 6, 0xFFFFFFFFFFFFFFFF}
    assert [reward.rollout_id for reward in (await store.list_rewards()).items] == [stays.id]
    assert [attempt.rollout_id for attempt in (await store.list_attempts()).items] == [stays.id]
    with pytest.raises(NotFoundError):
        await store.get_rollouts([gone.id])


@pytest.mark.parametrize("running", [True, False])
async def test_what_has_not_ended_is_not_removed(store: Store, running: bool) -> None:
    ended, going_on = await queue(store, 2)
    await store.cancel([ended.id])
    if running:
        await take(store)
    with pytest.raises(StoreError, match=f"{going_on.id}.*not ended"):
        await store.delete_rollouts([ended.id, going_on.id])
    assert len((await store.list_rollouts()).items) == 2


async def test_the_worker_of_a_removed_rollout_is_told(store: Store) -> None:
    (rollout,) = await queue(store)
    lease = await take(store)
    await store.cancel([rollout.id])
    await store.delete_rollouts([rollout.id])
    assert await store.heartbeat([lease.attempt.id]) == frozenset()
    with pytest.raises(NotFoundError):
        await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[a_span(lease, 1)])
    assert not (await store.list_spans()).items


async def test_who_waits_for_a_removed_rollout_is_told(store: Store) -> None:
    one, other = await queue(store, 2)
    waiting = asyncio.create_task(store.wait([one.id, other.id], timeout_seconds=20))
    await asyncio.sleep(0.1)
    await store.cancel([one.id])
    await store.delete_rollouts([one.id])
    await store.cancel([other.id])
    async with asyncio.timeout(10):
        with pytest.raises(NotFoundError, match=one.id):
            await waiting


async def test_traces_are_removed_that_belong_to_no_rollout_of_the_store(store: Store) -> None:
    await queue(store)
    lease = await take(store)
    kept = [a_span(lease, 1), a_span(lease, 2, attempt_id=None), a_span(lease, 3, rollout_id=None)]
    elsewhere = a_span(lease, 4, rollout_id="ro-elsewhere", attempt_id="at-elsewhere")
    loose = a_span(lease, 5, rollout_id=None, attempt_id=None)
    other = replace(loose, trace_id="b" * 32)
    await store.add_spans([*kept, elsewhere, loose, other])
    await store.delete_traces(["a" * 32, "c" * 32])
    await store.delete_traces(["a" * 32])
    assert list((await store.list_spans()).items) == [*kept, other]


# Waiting for some, and groups


async def test_waiting_for_some_of_them(store: Store) -> None:
    rollouts = await queue(store, 4)
    ids = [rollout.id for rollout in rollouts]
    waiting = asyncio.create_task(store.wait(ids, at_least=2))
    others = asyncio.create_task(store.wait([*ids, *ids], at_least=3))
    await asyncio.sleep(0.1)
    await store.cancel(ids[2:3])
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await store.cancel(ids[:1])
    async with asyncio.timeout(10):
        found = await waiting
    assert [rollout.state.terminal for rollout in found] == [True, False, True, False]
    assert not others.done()
    await store.cancel(ids)
    async with asyncio.timeout(10):
        assert all(rollout.state.terminal for rollout in await others)


async def test_waiting_for_some_that_have_ended_already(store: Store) -> None:
    rollouts = await queue(store, 2)
    ids = [rollout.id for rollout in rollouts]
    assert len(await store.wait(ids, at_least=0)) == 2
    await store.cancel(ids[:1])
    async with asyncio.timeout(10):
        assert len(await store.wait(ids, at_least=1)) == 2
    for nonsense in (-1, 3):
        with pytest.raises(StoreError, match="at_least"):
            await store.wait(ids, at_least=nonsense)


async def test_groups_are_given_as_they_complete(store: Store) -> None:
    groups = {}
    for name in "abc":
        groups[name] = [rollout.id for rollout in await queue(store, 3, group_id=name)]
    ids = [id_ for group in groups.values() for id_ in group]
    assert [rollout.id for rollout in (await store.list_rollouts(group_id="b")).items] == groups["b"]
    given: list[str] = []
    first, second = asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        async for name, rollouts in completed_groups(store, {**groups, "empty": []}):
            assert [rollout.id for rollout in rollouts] == groups.get(name, [])
            assert all(rollout.state.terminal for rollout in rollouts)
            given.append(name)
            first.set()
            if len(given) == 2:
                second.set()

    following = asyncio.create_task(follow())
    await asyncio.wait_for(first.wait(), 10)
    assert given == ["empty"]
    # One of each, so that many have ended while no group is complete.
    await store.cancel([group[0] for group in groups.values()])
    await store.cancel(groups["c"])
    async with asyncio.timeout(10):
        await second.wait()
    await store.cancel(ids)
    async with asyncio.timeout(10):
        await following
    assert given[:2] == ["empty", "c"]
    assert sorted(given[2:]) == ["a", "b"]


async def test_groups_that_do_not_complete_in_time_are_not_given(store: Store) -> None:
    done_ids = [rollout.id for rollout in await queue(store, 2)]
    open_ids = [rollout.id for rollout in await queue(store, 2)]
    await store.cancel([*done_ids, open_ids[0]])
    given = [name async for name, _ in completed_groups(store, {"d": done_ids, "o": open_ids}, timeout_seconds=0.3)]
    assert given == ["d"]


async def test_a_group_of_nothing_that_exists_is_an_error(store: Store) -> None:
    with pytest.raises(NotFoundError, match="ro-none"):
        async for _ in completed_groups(store, {"g": ["ro-none"]}):
            pass


async def test_who_stops_early_leaves_nobody_waiting(store: Store) -> None:
    groups = {str(number): [(await queue(store))[0].id] for number in range(20)}
    await store.cancel(groups["7"])
    before = len(asyncio.all_tasks())
    async with aclosing(completed_groups(store, groups)) as completing:
        async for name, _ in completing:
            assert name == "7"
            break
    assert len(asyncio.all_tasks()) == before


# A clock that is set


async def look(store: Store) -> None:
    assert list(await store.lease("somebody", run_id="none")) == []


async def test_a_small_step_back_loses_no_lease(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, max_attempts=1)
    lease = await take(timed_store, lease_seconds=10)
    clock.advance(-3)
    assert list(await timed_store.lease("thief")) == []
    clock.advance(9)
    assert await timed_store.heartbeat([lease.attempt.id], lease_seconds=10) == {lease.attempt.id}
    clock.advance(9)
    assert list(await timed_store.lease("thief")) == []
    done = await timed_store.finish(lease.attempt.id, AttemptState.SUCCEEDED)
    assert done.state is RolloutState.SUCCEEDED


async def test_a_lease_that_was_given_in_a_wrong_future_runs_out(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, max_attempts=2)
    clock.advance(10**6)
    await take(timed_store, lease_seconds=10)
    clock.advance(-(10**6))
    await look(timed_store)
    clock.advance(9.9)
    assert list(await timed_store.lease("next")) == []
    clock.advance(0.2)
    assert (await take(timed_store)).attempt.number == 2


async def test_a_store_that_is_opened_after_the_clock_went_back_notices(open_store: OpenStore, clock: Clock) -> None:
    first = await open_store("same", clock=clock)
    await queue(first, max_attempts=2)
    clock.advance(10**6)
    await take(first, lease_seconds=10)
    await first.close()
    clock.advance(-(10**6))
    second = await open_store("same", clock=clock)
    await look(second)
    clock.advance(10.1)
    assert (await take(second)).attempt.number == 2


async def test_a_delay_that_began_in_a_wrong_future_ends(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, max_attempts=9, retry=RetryPolicy(delay_seconds=10))
    (planned,) = await queue(timed_store, available_ns=clock.now + 2 * 10**6 * SECOND)
    clock.advance(10**6)
    await fail(timed_store)
    clock.advance(-(10**6))
    for _ in range(3):
        await look(timed_store)
        clock.advance(3)
    assert list(await timed_store.lease("early")) == []
    clock.advance(1.1)
    assert (await take(timed_store)).attempt.number == 2
    assert (await timed_store.get_rollouts([planned.id]))[0].available_ns == planned.available_ns


async def test_what_was_available_by_a_wrong_clock_waits_again(timed_store: Store, clock: Clock) -> None:
    await queue(timed_store, available_ns=clock.now + 100 * SECOND)
    clock.advance(10**6)
    await look(timed_store)
    clock.advance(-(10**6))
    assert list(await timed_store.lease("early")) == []
    clock.advance(100)
    assert (await take(timed_store)).attempt.number == 1


async def test_a_leap_forward_ends_leases_but_loses_no_work(timed_store: Store, clock: Clock) -> None:
    (rollout,) = await queue(timed_store, max_attempts=2)
    lost = await take(timed_store, lease_seconds=10)
    clock.advance(10**6)
    again = await take(timed_store, lease_seconds=10)
    assert await timed_store.heartbeat([lost.attempt.id, again.attempt.id]) == {again.attempt.id}
    with pytest.raises(LeaseLostError):
        await timed_store.finish(lost.attempt.id, AttemptState.SUCCEEDED)
    assert (await timed_store.finish(again.attempt.id, AttemptState.SUCCEEDED)).id == rollout.id
