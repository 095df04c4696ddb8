"""What all stores in a SQL database have in common: each method of the interface as one read or one write.

What is done in a transaction is in ``work.py``, ``traces.py``, ``resources.py`` and ``runs.py``; how transactions are
made, how others learn of a change, and what a fault of the database means is the business of each database's own file.
"""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection, func, select

from coterie.errors import ConfigError, LeaseLostError, StoreError
from coterie.store import records, resources, runs, traces, work
from coterie.store.base import Page, Store
from coterie.store.tables import METADATA, ROLLOUTS
from coterie.store.wakeups import Wakeups
from coterie.store.writer import Transaction
from coterie.vocabulary import (
    JSON,
    Attempt,
    AttemptState,
    Decision,
    FailureCause,
    Lease,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    Reward,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Span,
    Task,
)

Result = TypeVar("Result")


class SqlStore(Store):
    """A store in a SQL database. A subclass says how to read, to write and to watch."""

    _wakeups: Wakeups
    """Those in this process who wait."""
    _clock: Callable[[], int]
    """The present time in nanoseconds, by which leases run out."""

    @abstractmethod
    async def _read(self, read: Callable[[Connection], Result]) -> Result:
        """Run ``read`` in a transaction that sees one state of the database."""

    @abstractmethod
    async def _write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
    ) -> Result:
        """Run ``write`` in a transaction, all or nothing, and return its result when it is on disk.

        If the caller is gone by then, ``undo`` takes it back.
        """

    @abstractmethod
    def _watch(self) -> None:
        """Called when somebody begins to wait, before the wait: changes that others make must wake them."""

    @abstractmethod
    def _bytes(self, connection: Connection) -> int:
        """The size of the store on disk."""

    # Tasks

    async def add_tasks(self, tasks: Sequence[Task]) -> None:
        rows = [records.task_row(task) for task in tasks]
        await self._write(lambda transaction: work.add_tasks(transaction, rows))

    async def get_tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        return await self._read(lambda connection: work.get_tasks(connection, ids))

    async def list_tasks(
        self, *, dataset: str | None = None, split: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Task]:
        return await self._read(lambda connection: work.list_tasks(connection, dataset, split, after, limit))

    # Rollouts and attempts

    async def enqueue(self, rollouts: Sequence[Rollout]) -> None:
        rows = [records.rollout_row(rollout) for rollout in rollouts]
        await self._write(lambda transaction: work.enqueue(transaction, rollouts, rows))

    async def lease(
        self,
        worker: str,
        *,
        limit: int = 1,
        lease_seconds: float = 60.0,
        wait_seconds: float = 0.0,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> Sequence[Lease]:
        if limit < 1:
            raise StoreError(f"lease: limit is {limit}; it must be 1 or more.")
        lease_ns = _lease_ns(lease_seconds)
        give_up_at = time.monotonic() + wait_seconds
        with self._wakeups.waiter() as waiter:
            while True:
                leases = await self._lease_now(worker, limit, lease_ns, run_id, request_id)
                left = give_up_at - time.monotonic()
                if leases or left <= 0:
                    return leases
                self._watch()
                await waiter.woken(await self._until_next_expiry(left))

    async def begin(self, rollout: Rollout, worker: str, *, lease_seconds: float = 60.0) -> Lease:
        row, lease_ns = records.rollout_row(rollout), _lease_ns(lease_seconds)
        return await self._write(
            lambda transaction: work.begin(transaction, rollout, row, worker, lease_ns=lease_ns, now=self._clock())
        )

    async def heartbeat(self, attempt_ids: Sequence[str], *, lease_seconds: float = 60.0) -> Collection[str]:
        lease_ns = _lease_ns(lease_seconds)
        return await self._write(
            lambda transaction: work.heartbeat(transaction, attempt_ids, lease_ns=lease_ns, now=self._clock())
        )

    async def finish(
        self,
        attempt_id: str,
        state: AttemptState,
        *,
        cause: FailureCause | None = None,
        error: str | None = None,
        warnings: Sequence[str] = (),
        spans: Sequence[Span] = (),
        rewards: Sequence[Reward] = (),
        retry: bool = True,
    ) -> Rollout:
        state = work.checked_end(state)
        span_rows = [records.span_row(span) for span in spans]
        reward_rows = [records.reward_row(reward) for reward in rewards]
        outcome = await self._write(
            lambda transaction: work.finish(
                transaction,
                attempt_id,
                state,
                cause=cause,
                error=error,
                warnings=warnings,
                span_rows=span_rows,
                reward_rows=reward_rows,
                retry=retry,
                now=self._clock(),
            )
        )
        if isinstance(outcome, LeaseLostError):
            raise outcome
        return outcome

    async def cancel(self, rollout_ids: Sequence[str], *, reason: str = "cancelled") -> None:
        await self._write(lambda transaction: work.cancel(transaction, rollout_ids, reason=reason, now=self._clock()))

    async def get_rollouts(self, ids: Sequence[str]) -> Sequence[Rollout]:
        return await self._read(lambda connection: work.get_rollouts(connection, ids))

    async def list_rollouts(
        self,
        *,
        run_id: str | None = None,
        mode: Mode | None = None,
        state: RolloutState | None = None,
        step: int | None = None,
        task_id: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[Rollout]:
        filters = {"run_id": run_id, "mode": mode, "state": state, "step": step, "task_id": task_id}
        return await self._read(lambda connection: work.list_rollouts(connection, filters, after, limit))

    async def wait(self, rollout_ids: Sequence[str], *, timeout_seconds: float | None = None) -> Sequence[Rollout]:
        give_up_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._wakeups.waiter(rollout_ids) as waiter:
            while open_ids := await self._read(lambda connection: work.open_rollouts(connection, rollout_ids)):
                self._wakeups.narrow(waiter, open_ids)
                left = None if give_up_at is None else give_up_at - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._watch()
                await waiter.woken(await self._until_next_expiry(left))
                await self._expire_if_due()
            return await self.get_rollouts(rollout_ids)

    async def get_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Sequence[Attempt]]:
        return await self._read(lambda connection: work.get_attempts(connection, rollout_ids))

    # Spans and rewards

    async def add_spans(self, spans: Sequence[Span]) -> None:
        rows = [records.span_row(span) for span in spans]
        await self._write(lambda transaction: traces.add_spans(transaction, rows))

    async def get_spans(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Span]]:
        return await self._read(lambda connection: traces.get_spans(connection, attempt_ids))

    async def list_spans(
        self, *, rollout_id: str | None = None, trace_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Span]:
        filters = {"rollout_id": rollout_id, "trace_id": trace_id}
        return await self._read(lambda connection: traces.list_spans(connection, filters, after, limit))

    async def add_rewards(self, rewards: Sequence[Reward]) -> None:
        rows = [records.reward_row(reward) for reward in rewards]
        await self._write(lambda transaction: traces.add_rewards(transaction, rows))

    async def get_rewards(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Reward]]:
        return await self._read(lambda connection: traces.get_rewards(connection, attempt_ids))

    # Resources

    async def publish(self, resource: Resource) -> Resource:
        records.resource_row(resource)
        return await self._write(lambda transaction: resources.publish(transaction, resource))

    async def get_resource(self, name: str, version: int | None = None) -> Resource:
        return await self._read(lambda connection: resources.get_resource(connection, name, version))

    async def list_resources(self, *, kind: ResourceKind | None = None, name: str | None = None) -> Sequence[Resource]:
        return await self._read(lambda connection: resources.list_resources(connection, kind, name))

    # Runs

    async def save_run(self, run: Run) -> None:
        row = records.run_row(run)
        await self._write(lambda transaction: runs.save_run(transaction, row))

    async def get_run(self, run_id: str) -> Run:
        return await self._read(lambda connection: runs.get_run(connection, run_id))

    async def list_runs(
        self, *, state: RunState | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Run]:
        return await self._read(lambda connection: runs.list_runs(connection, state, after, limit))

    async def add_metrics(self, metrics: Sequence[Metrics]) -> None:
        rows = [records.metrics_row(figures) for figures in metrics]
        await self._write(lambda transaction: runs.add_metrics(transaction, rows))

    async def get_metrics(self, run_id: str, *, stage: str | None = None) -> Sequence[Metrics]:
        return await self._read(lambda connection: runs.get_metrics(connection, run_id, stage))

    async def add_decision(self, decision: Decision) -> None:
        row = records.decision_row(decision)
        await self._write(lambda transaction: runs.add_decision(transaction, row))

    async def get_decisions(self, run_id: str) -> Sequence[Decision]:
        return await self._read(lambda connection: runs.get_decisions(connection, run_id))

    async def statistics(self) -> Mapping[str, JSON]:
        return await self._read(self._count)

    # Machinery

    async def _lease_now(
        self, worker: str, limit: int, lease_ns: int, run_id: str | None, request_id: str | None
    ) -> list[Lease]:
        return await self._write(
            lambda transaction: work.lease(
                transaction,
                worker,
                limit=limit,
                lease_ns=lease_ns,
                run_id=run_id,
                request_id=request_id,
                now=self._clock(),
            ),
            # When the caller is gone, nobody would do the work until the lease ran out.
            undo=lambda transaction, leases: work.give_back(
                transaction, [lease.attempt.id for lease in leases], now=self._clock()
            ),
        )

    async def _expire_if_due(self) -> None:
        expiry = await self._read(work.next_expiry)
        if expiry is not None and expiry <= self._clock():
            await self._write(lambda transaction: work.expire(transaction, self._clock()))

    async def _until_next_expiry(self, at_most_seconds: float | None) -> float | None:
        """Seconds until a lease runs out, which nobody announces, or the given time if that is sooner."""
        expiry = await self._read(work.next_expiry)
        if expiry is None:
            return at_most_seconds
        seconds = max(0.0, (expiry - self._clock()) / 1e9) + 0.001
        return seconds if at_most_seconds is None else min(seconds, at_most_seconds)

    def _count(self, connection: Connection) -> dict[str, JSON]:
        counts: dict[str, JSON] = {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in sorted(METADATA.tables.items())
        }
        by_state = connection.execute(select(ROLLOUTS.c.state, func.count()).group_by(ROLLOUTS.c.state)).all()
        counted = {row.state: row[1] for row in by_state}
        counts["rollouts_by_state"] = {state.value: counted.get(state.value, 0) for state in RolloutState}
        counts["bytes"] = self._bytes(connection)
        return counts


def _lease_ns(lease_seconds: float) -> int:
    if not (math.isfinite(lease_seconds) and lease_seconds > 0):
        raise ConfigError(f"lease_seconds is {lease_seconds}; give a positive number of seconds.")
    return int(lease_seconds * 1e9)
