"""The queue against a small model of it: no rollout is lost, doubled or raised from the dead."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from stores_under_test import STORES, Clock

from coterie.errors import LeaseLostError
from coterie.vocabulary import AttemptState, FailureCause, Rollout, Task


@dataclass
class ModelAttempt:
    state: str
    expires_ns: int


@dataclass
class ModelRollout:
    max_attempts: int
    state: str = "queued"
    attempts: dict[str, ModelAttempt] = field(default_factory=dict)

    def after_failure(self) -> None:
        failed = sum(attempt.state == "failed" for attempt in self.attempts.values())
        self.state = "queued" if failed < self.max_attempts else "dead"


class QueueMachine(RuleBasedStateMachine):
    """Does to a store what workers do, and to the model what the contract says."""

    kind: str
    rollout_ids: Bundle[str] = Bundle("rollout_ids")
    attempt_ids: Bundle[str] = Bundle("attempt_ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.stores = STORES[self.kind](Path(self.folder.name))
        self.store = self.do(self.stores("model", self.clock))
        self.do(self.store.add_tasks([Task("t", 1)]))
        self.model: dict[str, ModelRollout] = {}
        self.rollout_of: dict[str, str] = {}

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.do(self.stores.close())
        self.runner.close()
        self.folder.cleanup()

    def expire(self) -> None:
        for rollout in self.model.values():
            for attempt in rollout.attempts.values():
                if attempt.state == "running" and attempt.expires_ns <= self.clock.now:
                    attempt.state = "failed"
                    rollout.after_failure()

    @rule(target=rollout_ids, limits=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def enqueue(self, limits: list[int]) -> Any:
        rollouts = [Rollout("t", max_attempts=limit) for limit in limits]
        self.do(self.store.enqueue(rollouts))
        self.model |= {rollout.id: ModelRollout(rollout.max_attempts) for rollout in rollouts}
        return multiple(*(rollout.id for rollout in rollouts))

    @rule(rollout_id=rollout_ids)
    def enqueue_again(self, rollout_id: str) -> None:
        self.do(self.store.enqueue([Rollout("t", id=rollout_id, max_attempts=9)]))

    @rule(target=attempt_ids, limit=st.integers(1, 4), seconds=st.sampled_from([5, 20, 60]))
    def lease(self, limit: int, seconds: int) -> Any:
        leases = self.do(self.store.lease("w", limit=limit, lease_seconds=seconds))
        self.expire()
        expected = [id_ for id_, rollout in self.model.items() if rollout.state == "queued"][:limit]
        assert [lease.rollout.id for lease in leases] == expected
        for lease in leases:
            rollout = self.model[lease.rollout.id]
            assert lease.attempt.number == len(rollout.attempts) + 1
            assert lease.attempt.id not in self.rollout_of
            rollout.state = "running"
            rollout.attempts[lease.attempt.id] = ModelAttempt("running", self.clock.now + seconds * 1_000_000_000)
            self.rollout_of[lease.attempt.id] = lease.rollout.id
        return multiple(*(lease.attempt.id for lease in leases))

    @rule(seconds=st.sampled_from([1, 6, 25, 61]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(attempt_id=attempt_ids, seconds=st.sampled_from([5, 30]))
    def heartbeat(self, attempt_id: str, seconds: int) -> None:
        held = self.do(self.store.heartbeat([attempt_id, "at-none"], lease_seconds=seconds))
        attempt = self.model[self.rollout_of[attempt_id]].attempts[attempt_id]
        assert held == ({attempt_id} if attempt.state == "running" else set())
        if held:
            attempt.expires_ns = self.clock.now + seconds * 1_000_000_000

    @rule(
        attempt_id=attempt_ids,
        state=st.sampled_from([AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.CANCELLED]),
        retry=st.booleans(),
    )
    def finish(self, attempt_id: str, state: AttemptState, retry: bool) -> None:
        rollout = self.model[self.rollout_of[attempt_id]]
        attempt = rollout.attempts[attempt_id]
        # Of another cause than an expired lease, so that the two never count as the same end.
        cause = FailureCause.ERROR if state is AttemptState.FAILED else None
        try:
            ended = self.do(self.store.finish(attempt_id, state, cause=cause, retry=retry))
        except LeaseLostError:
            assert attempt.state != "running"
            return
        if attempt.state == "running":
            attempt.state = state.value
            if state is AttemptState.SUCCEEDED:
                rollout.state = "succeeded"
            elif state is AttemptState.CANCELLED:
                rollout.state = "queued" if retry else "cancelled"
            elif retry:
                rollout.after_failure()
            else:
                rollout.state = "dead"
        else:
            assert attempt.state == state.value
        assert ended.state.value == rollout.state

    @rule(rollout_id=rollout_ids)
    def cancel(self, rollout_id: str) -> None:
        self.do(self.store.cancel([rollout_id]))
        rollout = self.model[rollout_id]
        if rollout.state in ("queued", "running"):
            rollout.state = "cancelled"
            for attempt in rollout.attempts.values():
                if attempt.state == "running":
                    attempt.state = "cancelled"

    @invariant()
    def store_and_model_agree(self) -> None:
        listed = self.do(self.store.list_rollouts()).items
        assert {rollout.id: rollout.state.value for rollout in listed} == {
            id_: rollout.state for id_, rollout in self.model.items()
        }
        assert len(listed) == len(self.model)
        for rollout in listed:
            assert (rollout.finished_ns is not None) == rollout.state.terminal
            assert (rollout.reason is not None) == (rollout.state.value in ("dead", "cancelled"))
        kept = self.do(self.store.get_attempts(list(self.model)))
        assert {id_: {attempt.id: attempt.state.value for attempt in attempts} for id_, attempts in kept.items()} == {
            id_: {attempt_id: attempt.state for attempt_id, attempt in rollout.attempts.items()}
            for id_, rollout in self.model.items()
        }
        for id_, attempts in kept.items():
            running = [attempt for attempt in attempts if attempt.state is AttemptState.RUNNING]
            assert len(running) == (1 if self.model[id_].state == "running" else 0)


@pytest.mark.parametrize("kind", sorted(STORES))
def test_the_queue_behaves_like_its_model(kind: str) -> None:
    machine = type(f"{kind.title()}QueueMachine", (QueueMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
