"""The queue against a small model of it: no rollout is lost, doubled or raised from the dead.

Two stores on one database, so that what one does the other must see. Time is a clock of the test.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from stores_under_test import STORES, Clock

from coterie.errors import LeaseLostError, NotFoundError, StoreError
from coterie.store.base import Store
from coterie.store.retention import Retention
from coterie.store.transfer import Records
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    FailureCause,
    Lease,
    Mode,
    RetryPolicy,
    Rollout,
    RolloutState,
    Task,
)

SECOND = 1_000_000_000
NOBODYS = "a run of which there are no rollouts"

POLICIES = st.builds(
    RetryPolicy,
    by_cause=st.dictionaries(st.sampled_from(FailureCause), st.integers(1, 3), max_size=2),
    delay_seconds=st.sampled_from([0.0, 0.0, 3.0, 20.0]),
    backoff=st.sampled_from([1.0, 2.0]),
    max_delay_seconds=st.sampled_from([10.0, 300.0]),
)
STORE = st.sampled_from([0, 1])
"""Which of the two stores is asked."""


@dataclass
class ModelAttempt:
    state: str
    renewed_ns: int
    expires_ns: int
    cause: FailureCause | None = None
    ended_ns: int = 0


@dataclass
class ModelRollout:
    max_attempts: int
    retry: RetryPolicy
    available_ns: int | None
    place: int
    mode: Mode = Mode.TRAIN
    state: str = "queued"
    finished_ns: int | None = None
    attempts: dict[str, ModelAttempt] = field(default_factory=dict)

    def end(self, state: str, now: int) -> None:
        self.state, self.available_ns, self.finished_ns = state, None, now

    def failed(self, cause: FailureCause | None = None) -> int:
        return sum(a.state == "failed" and cause in (None, a.cause) for a in self.attempts.values())

    def delay_ns(self) -> int:
        retry = self.retry
        return int(min(retry.delay_seconds * retry.backoff ** (self.failed() - 1), retry.max_delay_seconds) * SECOND)

    def after_failure(self, attempt: ModelAttempt, cause: FailureCause, now: int, *, retry: bool = True) -> None:
        attempt.state, attempt.cause, attempt.ended_ns = "failed", cause, now
        spent = self.failed() >= self.max_attempts or self.failed(cause) >= self.retry.by_cause.get(cause, 10**9)
        if spent or not retry:
            self.end("dead", now)
        else:
            self.state = "queued"
            self.available_ns = now + self.delay_ns() if self.delay_ns() else None


class QueueMachine(RuleBasedStateMachine):
    """Does to a store what workers and operators do, and to the model what the contract says."""

    kind: str
    rollout_ids: Bundle[str] = Bundle("rollout_ids")
    attempt_ids: Bundle[str] = Bundle("attempt_ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.clock.advance(10_000_000)
        self.opened = STORES[self.kind](Path(self.folder.name))
        self.stores: list[Store] = [self.do(self.opened("model", self.clock)) for _ in range(2)]
        self.do(self.stores[0].add_tasks([Task("t", 1)]))
        self.model: dict[str, ModelRollout] = {}
        self.rollout_of: dict[str, str] = {}
        self.places = 0

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.do(self.opened.close())
        self.runner.close()
        self.folder.cleanup()

    # What time and the stores do by themselves

    def catch_up(self, store: int) -> None:
        """Let a store notice the time."""
        assert list(self.do(self.stores[store].lease("w", run_id=NOBODYS))) == []
        self.expire()

    def expire(self) -> None:
        overdue = [
            (attempt.expires_ns, rollout, attempt)
            for rollout in self.model.values()
            for attempt in rollout.attempts.values()
            if attempt.state == "running" and attempt.expires_ns <= self.clock.now
        ]
        for _, rollout, attempt in sorted(overdue, key=lambda entry: entry[0]):
            rollout.after_failure(attempt, FailureCause.LEASE_EXPIRED, self.clock.now)

    def count_anew(self) -> None:
        now = self.clock.now
        for rollout in self.model.values():
            for attempt in rollout.attempts.values():
                if attempt.state == "running" and attempt.renewed_ns > now:
                    attempt.expires_ns += now - attempt.renewed_ns
                    attempt.renewed_ns = now
            if rollout.available_ns is not None and any(
                attempt.state == "failed" and attempt.ended_ns > now for attempt in rollout.attempts.values()
            ):
                rollout.available_ns = min(rollout.available_ns, now + rollout.delay_ns())

    def available(self) -> list[str]:
        return sorted(
            (
                id_
                for id_, rollout in self.model.items()
                if rollout.state == "queued" and (rollout.available_ns or 0) <= self.clock.now
            ),
            key=lambda id_: self.model[id_].place,
        )

    def add(self, rollout: Rollout) -> None:
        self.places += 1
        self.model[rollout.id] = ModelRollout(
            rollout.max_attempts, rollout.retry, rollout.available_ns, self.places, rollout.mode
        )

    def take(self, leases: Iterable[Lease], seconds: int) -> Any:
        for lease in leases:
            rollout = self.model[lease.rollout.id]
            assert lease.attempt.number == len(rollout.attempts) + 1
            assert lease.attempt.id not in self.rollout_of
            assert lease.rollout.state is RolloutState.RUNNING
            assert lease.rollout.available_ns is None
            rollout.state, rollout.available_ns = "running", None
            now = self.clock.now
            rollout.attempts[lease.attempt.id] = ModelAttempt("running", now, now + seconds * SECOND)
            self.rollout_of[lease.attempt.id] = lease.rollout.id
        return multiple(*(lease.attempt.id for lease in leases))

    # Queueing and time

    @rule(
        target=rollout_ids,
        store=STORE,
        limits=st.lists(st.integers(1, 4), min_size=1, max_size=3),
        retry=POLICIES,
        put_off=st.sampled_from([None, None, -5, 4, 30]),
        mode=st.sampled_from([Mode.TRAIN, Mode.PRODUCTION]),
    )
    def enqueue(self, store: int, limits: list[int], retry: RetryPolicy, put_off: int | None, mode: Mode) -> Any:
        available_ns = None if put_off is None else self.clock.now + put_off * SECOND
        rollouts = [
            Rollout("t", mode, max_attempts=limit, retry=retry, available_ns=available_ns, created_ns=self.clock.now)
            for limit in limits
        ]
        self.do(self.stores[store].enqueue(rollouts))
        for rollout in rollouts:
            self.add(rollout)
        return multiple(*(rollout.id for rollout in rollouts))

    @rule(store=STORE, rollout_id=rollout_ids)
    def enqueue_again(self, store: int, rollout_id: str) -> None:
        """What is there stays as it is; what was removed is new."""
        again = Rollout("t", id=rollout_id, max_attempts=9)
        self.do(self.stores[store].enqueue([again]))
        if rollout_id not in self.model:
            self.add(again)

    @rule(seconds=st.sampled_from([1, 6, 25, 61]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([1, 6, 100_000]))
    def the_clock_goes_back(self, seconds: int) -> None:
        for store in range(2):
            self.catch_up(store)
        self.clock.advance(-seconds)
        self.count_anew()
        for store in range(2):
            self.catch_up(store)

    # Workers

    @rule(
        target=attempt_ids,
        store=STORE,
        worker=st.sampled_from(["w1", "w2"]),
        limit=st.integers(1, 4),
        seconds=st.sampled_from([5, 20, 60]),
    )
    def lease(self, store: int, worker: str, limit: int, seconds: int) -> Any:
        leases = self.do(self.stores[store].lease(worker, limit=limit, lease_seconds=seconds))
        self.expire()
        assert [lease.rollout.id for lease in leases] == self.available()[:limit]
        return self.take(leases, seconds)

    @rule(store=STORE, limit=st.integers(1, 3), turns=st.integers(0, 6), pause=st.booleans())
    def lease_and_go_away(self, store: int, limit: int, turns: int, pause: bool) -> None:
        """A call that is cancelled takes nothing, however far it got. If it was too late for that, it gives back."""
        self.catch_up(store)
        leases = self.do(self.cancelled_lease(self.stores[store], limit, turns, pause))
        assert [lease.rollout.id for lease in leases] == self.available()[: len(leases)]
        for lease in leases:
            self.do(self.stores[store].finish(lease.attempt.id, AttemptState.CANCELLED))
        self.do(self.nothing_is_held_for_nobody(self.stores[store]))

    async def cancelled_lease(self, store: Store, limit: int, turns: int, pause: bool) -> list[Lease]:
        call = asyncio.create_task(store.lease("gone", limit=limit, lease_seconds=60))
        for _ in range(turns):
            await asyncio.sleep(0.0003 if pause else 0)
        call.cancel()
        try:
            return list(await call)
        except asyncio.CancelledError:
            return []

    async def nothing_is_held_for_nobody(self, store: Store) -> None:
        """Wait until the store has taken back what it had given to a call that was gone; learn of those attempts."""
        began = time.monotonic()
        await store.heartbeat([])
        if self.kind != "sqlite":
            # There the write of the call may go on beside later ones, the longer the busier the machine is.
            await asyncio.sleep(0.05 + 20 * (time.monotonic() - began))
        give_up_at = time.monotonic() + 10
        while True:
            kept = await self.stores[0].get_attempts(list(self.model))
            new = [a for attempts in kept.values() for a in attempts if a.id not in self.rollout_of]
            if all(attempt.state is AttemptState.CANCELLED for attempt in new):
                break
            assert time.monotonic() < give_up_at, "work is held for a call that was cancelled"
            await asyncio.sleep(0.002)
        for attempt in new:
            self.rollout_of[attempt.id] = attempt.rollout_id
            rollout = self.model[attempt.rollout_id]
            assert (rollout.available_ns or 0) <= self.clock.now
            rollout.available_ns = None
            rollout.attempts[attempt.id] = ModelAttempt("cancelled", 0, 0)

    @rule(store=STORE, attempt_id=attempt_ids, seconds=st.sampled_from([5, 30]))
    def heartbeat(self, store: int, attempt_id: str, seconds: int) -> None:
        held = self.do(self.stores[store].heartbeat([attempt_id, "at-none"], lease_seconds=seconds))
        attempt = self.attempt(attempt_id)
        running = attempt is not None and attempt.state == "running"
        assert set(held) == ({attempt_id} if running else set())
        if attempt is not None and running:
            attempt.renewed_ns, attempt.expires_ns = self.clock.now, self.clock.now + seconds * SECOND

    def attempt(self, attempt_id: str) -> ModelAttempt | None:
        rollout = self.model.get(self.rollout_of[attempt_id])
        return None if rollout is None else rollout.attempts.get(attempt_id)

    @rule(
        store=STORE,
        attempt_id=attempt_ids,
        state=st.sampled_from(
            [AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.FAILED, AttemptState.CANCELLED]
        ),
        # Not an expired lease, so that the two never count as the same end.
        cause=st.sampled_from([FailureCause.ERROR, FailureCause.DEADLINE, FailureCause.BAD_REWARD]),
        retry=st.sampled_from([True, True, False]),
    )
    def finish(self, store: int, attempt_id: str, state: AttemptState, cause: FailureCause, retry: bool) -> None:
        attempt = self.attempt(attempt_id)
        expected = cause if state is AttemptState.FAILED else None
        try:
            ended = self.do(self.stores[store].finish(attempt_id, state, cause=cause, retry=retry))
        except LeaseLostError:
            assert attempt is not None
            assert attempt.state != "running"
            assert (attempt.state, attempt.cause) != (state.value, expected)
            return
        except NotFoundError:
            assert attempt is None
            return
        assert attempt is not None
        rollout = self.model[self.rollout_of[attempt_id]]
        if attempt.state == "running":
            if state is AttemptState.FAILED:
                rollout.after_failure(attempt, cause, self.clock.now, retry=retry)
            else:
                attempt.state, attempt.ended_ns = state.value, self.clock.now
                if state is AttemptState.SUCCEEDED or not retry:
                    rollout.end(state.value, self.clock.now)
                else:
                    rollout.state = "queued"
        else:
            assert (attempt.state, attempt.cause) == (state.value, expected)
        assert ended.state.value == rollout.state

    # Operators

    @rule(store=STORE, rollout_ids=st.lists(rollout_ids, min_size=1, max_size=2))
    def cancel(self, store: int, rollout_ids: list[str]) -> None:
        if any(id_ not in self.model for id_ in rollout_ids):
            with pytest.raises(NotFoundError):
                self.do(self.stores[store].cancel(rollout_ids))
            return
        self.do(self.stores[store].cancel(rollout_ids))
        for rollout in (self.model[id_] for id_ in set(rollout_ids)):
            if rollout.state in ("queued", "running"):
                rollout.end("cancelled", self.clock.now)
                for attempt in rollout.attempts.values():
                    if attempt.state == "running":
                        attempt.state = "cancelled"

    @rule(store=STORE, rollout_ids=st.lists(rollout_ids, min_size=1, max_size=3), attempts=st.integers(1, 3))
    def requeue(self, store: int, rollout_ids: list[str], attempts: int) -> None:
        known = [self.model.get(id_) for id_ in dict.fromkeys(rollout_ids)]
        if any(rollout is None or rollout.state == "succeeded" for rollout in known):
            with pytest.raises(StoreError):
                self.do(self.stores[store].requeue(rollout_ids, attempts=attempts))
            return
        self.do(self.stores[store].requeue(rollout_ids, attempts=attempts))
        for rollout in known:
            assert rollout is not None
            if rollout.state in ("dead", "cancelled"):
                limits = {
                    cause: rollout.failed(cause) + attempts if rollout.failed(cause) >= limit else limit
                    for cause, limit in rollout.retry.by_cause.items()
                }
                policy = rollout.retry
                rollout.retry = RetryPolicy(limits, policy.delay_seconds, policy.backoff, policy.max_delay_seconds)
                rollout.max_attempts = rollout.failed() + attempts
                rollout.state, rollout.available_ns, rollout.finished_ns = "queued", None, None

    @rule(store=STORE, rollout_ids=st.lists(rollout_ids, min_size=1, max_size=2))
    def delete(self, store: int, rollout_ids: list[str]) -> None:
        going_on = [id_ for id_ in rollout_ids if id_ in self.model and self.model[id_].finished_ns is None]
        if going_on:
            with pytest.raises(StoreError, match="not ended"):
                self.do(self.stores[store].delete_rollouts(rollout_ids))
            return
        self.do(self.stores[store].delete_rollouts([*rollout_ids, "ro-none"]))
        for id_ in rollout_ids:
            self.model.pop(id_, None)

    @rule(store=STORE, age=st.sampled_from([0, 10, 60]), keep=st.sampled_from([(), (Mode.PRODUCTION,)]))
    def prune(self, store: int, age: int, keep: tuple[Mode, ...]) -> None:
        pruned = self.do(self.stores[store].prune(Retention(max_age_seconds=age, keep_modes=keep)))
        gone = [
            id_
            for id_, rollout in self.model.items()
            if rollout.mode not in keep
            and rollout.finished_ns is not None
            and rollout.finished_ns < self.clock.now - age * SECOND
        ]
        assert pruned.rollouts == len(gone)
        for id_ in gone:
            del self.model[id_]

    @rule(store=STORE)
    def load_what_is_there(self, store: int) -> None:
        """Nothing is doubled or put back."""
        rollouts = self.do(self.stores[store].list_rollouts()).items
        attempts = self.do(self.stores[store].list_attempts()).items
        self.do(self.stores[1 - store].load(Records(rollouts=rollouts, attempts=attempts)))

    @rule(store=STORE, at_least=st.integers(0, 3), rollout_ids=st.lists(rollout_ids, max_size=4))
    def wait_no_longer(self, store: int, at_least: int, rollout_ids: list[str]) -> None:
        known = [id_ for id_ in rollout_ids if id_ in self.model]
        at_least = min(at_least, len(set(known)))
        found = self.do(self.stores[store].wait(known, at_least=at_least, timeout_seconds=0))
        assert [rollout.id for rollout in found] == known
        assert [rollout.state.value for rollout in found] == [self.model[id_].state for id_ in known]

    @invariant()
    def stores_and_model_agree(self) -> None:
        one = self.stores[self.places % 2]
        listed = self.do(one.list_rollouts()).items
        assert [rollout.id for rollout in listed] == sorted(self.model, key=lambda id_: self.model[id_].place)
        for rollout in listed:
            model = self.model[rollout.id]
            assert rollout.state.value == model.state
            assert rollout.available_ns == model.available_ns
            assert rollout.finished_ns == model.finished_ns
            assert (rollout.max_attempts, rollout.retry) == (model.max_attempts, model.retry)
            assert (rollout.finished_ns is not None) == rollout.state.terminal
            assert (rollout.reason is not None) == (rollout.state.value in ("dead", "cancelled"))
        waiting = self.do(one.list_rollouts(state=RolloutState.QUEUED)).items
        assert [rollout.id for rollout in waiting] == [r.id for r in listed if r.state is RolloutState.QUEUED]
        kept: dict[str, list[Attempt]] = self.do(one.get_attempts(list(self.model)))
        for id_, model in self.model.items():
            assert {a.id: (a.state.value, a.cause) for a in kept[id_]} == {
                attempt_id: (attempt.state, attempt.cause) for attempt_id, attempt in model.attempts.items()
            }
            running = [attempt for attempt in kept[id_] if attempt.state is AttemptState.RUNNING]
            assert len(running) == (1 if model.state == "running" else 0)
            assert [a.lease_expires_ns for a in running] == [
                a.expires_ns for a in model.attempts.values() if a.state == "running"
            ]
            assert sum(attempt.state is AttemptState.SUCCEEDED for attempt in kept[id_]) <= 1


EXAMPLES = {"http": 6, "postgresql": 8, "sqlite": 15}
"""How many histories: those of the slower ones are the same code for the most part."""


@pytest.mark.parametrize("kind", sorted(STORES))
def test_the_queue_behaves_like_its_model(kind: str) -> None:
    machine = type(f"{kind.title()}QueueMachine", (QueueMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[kind],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
