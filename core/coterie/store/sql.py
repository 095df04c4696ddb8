"""What all stores in a SQL database have in common: each method of the interface as one read or one write.

What is done in a transaction is in ``work.py``, ``traces.py``, ``resources.py`` and ``runs.py``; how transactions are
made, how others learn of a change, and what a fault of the database means is the business of each database's own file.
"""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select, update

from coterie.errors import LeaseLostError, StoreError
from coterie.store import loading, pruning, records, resources, runs, text_index, text_search, traces, work
from coterie.store.base import Page, Store, checked_lease
from coterie.store.filters import SpanFilter
from coterie.store.retention import Pruned, Retention
from coterie.store.schema import VERSION
from coterie.store.tables import METADATA, ROLLOUTS
from coterie.store.transfer import Records
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
    ResourceStatus,
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
    _latest_ns: float = math.inf
    """What the clock showed last. Before it was looked at nobody knows whether it went back since another's last look."""

    _indexing: asyncio.Task[None] | None = None
    """Brings the index of words up to date, since somebody searched."""

    @abstractmethod
    async def _read(self, read: Callable[[Connection], Result]) -> Result:
        """Run ``read`` in a transaction that sees one state of the database."""

    @abstractmethod
    async def _write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
        repeatable: bool = True,
    ) -> Result:
        """Run ``write`` in a transaction, all or nothing, and return its result when it is on disk.

        If the caller is gone by then, ``undo`` takes it back. A write that is ``repeatable`` does nothing more when it
        is made again; another is made again only when it is known that it was not made, or after it was undone.
        """

    @abstractmethod
    def _watch(self) -> None:
        """Called when somebody begins to wait, before the wait: changes that others make must wake them."""

    @abstractmethod
    def _bytes(self, connection: Connection) -> int:
        """The size of the store on disk."""

    @abstractmethod
    def _bytes_in_use(self, connection: Connection) -> int:
        """What of it holds something, as far as the database can tell: it falls when rows are removed, or not at all."""

    @abstractmethod
    async def _give_back_space(self) -> None:
        """Give the space of removed rows back to the disk, as far as the database can while others use it."""

    async def check(self) -> None:
        # A real write: that is how a full disk or a lost right to write is found.
        await self._write(lambda transaction: transaction.connection.execute(_TOUCH) and None)
        await self._read(lambda connection: connection.execute(select(ROLLOUTS.c.seq).limit(1)).all())

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
                await self._notice_the_clock()
                leases = await self._lease_now(worker, limit, lease_ns, run_id, request_id)
                left = give_up_at - time.monotonic()
                if leases or left <= 0:
                    return leases
                self._watch()
                await waiter.woken(await self._until_next_time(left))

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
        group_id: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[Rollout]:
        filters = {
            "run_id": run_id,
            "mode": mode,
            "state": state,
            "step": step,
            "task_id": task_id,
            "group_id": group_id,
        }
        return await self._read(lambda connection: work.list_rollouts(connection, filters, after, limit))

    async def requeue(self, rollout_ids: Sequence[str], *, attempts: int = 1) -> None:
        if attempts < 1:
            raise StoreError(f"requeue: attempts is {attempts}; it must be 1 or more. Nothing was changed.")
        await self._write(lambda transaction: work.requeue(transaction, rollout_ids, attempts=attempts))

    async def delete_rollouts(self, rollout_ids: Sequence[str]) -> None:
        await self._write(lambda transaction: work.delete_rollouts(transaction, rollout_ids) and None)

    async def wait(
        self, rollout_ids: Sequence[str], *, at_least: int | None = None, timeout_seconds: float | None = None
    ) -> Sequence[Rollout]:
        may_remain = _may_remain(rollout_ids, at_least)
        give_up_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._wakeups.waiter(rollout_ids, may_remain=may_remain) as waiter:
            while True:
                open_ids = await self._read(lambda connection: work.open_rollouts(connection, rollout_ids))
                left = None if give_up_at is None else give_up_at - time.monotonic()
                if len(open_ids) <= may_remain or (left is not None and left <= 0):
                    return await self.get_rollouts(rollout_ids)
                self._wakeups.narrow(waiter, open_ids)
                self._watch()
                await waiter.woken(await self._until_next_time(left))
                await self._catch_up_if_due()

    async def get_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Sequence[Attempt]]:
        return await self._read(lambda connection: work.get_attempts(connection, rollout_ids))

    async def list_attempts(self, *, after: str | None = None, limit: int = 1000) -> Page[Attempt]:
        return await self._read(lambda connection: work.list_attempts(connection, after, limit))

    # Spans and rewards

    async def add_spans(self, spans: Sequence[Span]) -> None:
        rows = [records.span_row(span) for span in spans]
        await self._write(lambda transaction: traces.add_spans(transaction, rows))

    async def get_spans(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Span]]:
        return await self.get_spans_as(records.span_of, attempt_ids)

    async def get_spans_as(
        self, item_of: Callable[[Any], Result], attempt_ids: Sequence[str]
    ) -> Mapping[str, Sequence[Result]]:
        """The same, with what ``item_of`` makes of each span's row."""
        return await self._read(lambda connection: traces.get_spans(connection, attempt_ids, item_of))

    async def list_spans(
        self, *, rollout_id: str | None = None, trace_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Span]:
        return await self.list_spans_as(
            records.span_of, rollout_id=rollout_id, trace_id=trace_id, after=after, limit=limit
        )

    async def list_spans_as(
        self,
        item_of: Callable[[Any], Result],
        *,
        rollout_id: str | None = None,
        trace_id: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[Result]:
        """The same, with what ``item_of`` makes of each span's row."""
        filters = {"rollout_id": rollout_id, "trace_id": trace_id}
        return await self._read(lambda connection: traces.list_spans(connection, filters, after, limit, item_of))

    async def search_spans(
        self, where: SpanFilter, *, newest_first: bool = False, after: str | None = None, limit: int = 100
    ) -> Page[Span]:
        page = await self._read(
            lambda connection: text_search.search_spans(
                connection, where, newest_first=newest_first, after=after, limit=limit
            )
        )
        if text_search.uses_index(where) and (self._indexing is None or self._indexing.done()):
            self._indexing = asyncio.create_task(self._index_texts())
        return page

    async def delete_traces(self, trace_ids: Sequence[str]) -> None:
        await self._write(lambda transaction: traces.delete_traces(transaction, trace_ids))

    async def add_rewards(self, rewards: Sequence[Reward]) -> None:
        rows = [records.reward_row(reward) for reward in rewards]
        await self._write(lambda transaction: traces.add_rewards(transaction, rows))

    async def get_rewards(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Reward]]:
        return await self._read(lambda connection: traces.get_rewards(connection, attempt_ids))

    async def list_rewards(
        self, *, rollout_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Reward]:
        return await self._read(lambda connection: traces.list_rewards(connection, rollout_id, after, limit))

    # Resources

    async def publish(self, resource: Resource) -> Resource:
        records.resource_row(resource)
        return await self._write(
            lambda transaction: resources.publish(transaction, resource),
            # Without a version it gets another one each time.
            repeatable=resource.version != 0,
        )

    async def mark(
        self,
        name: str,
        version: int,
        status: ResourceStatus | None = None,
        *,
        scores: Mapping[str, JSON] | None = None,
    ) -> Resource:
        records.to_json(scores, f"resource {name!r}", "scores")
        return await self._write(lambda transaction: resources.mark(transaction, name, version, status, scores))

    async def get_resource(self, name: str, version: int | None = None) -> Resource:
        return await self._read(lambda connection: resources.get_resource(connection, name, version))

    async def list_resources(
        self, *, kind: ResourceKind | None = None, name: str | None = None, status: ResourceStatus | None = None
    ) -> Sequence[Resource]:
        return await self._read(lambda connection: resources.list_resources(connection, kind, name, status))

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

    async def list_decisions(
        self, *, run_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Decision]:
        return await self._read(lambda connection: runs.list_decisions(connection, run_id, after, limit))

    # The store as a whole

    async def load(self, records: Records) -> None:
        rows = loading.rows_of(records)
        await self._write(lambda transaction: loading.load(transaction, rows))

    async def prune(self, retention: Retention) -> Pruned:
        before = await self._read(self._bytes)
        modes = [mode.value for mode in retention.keep_modes]
        removed: Counter[str] = Counter()
        if retention.max_age_seconds is not None:
            ended_before = self._clock() - int(retention.max_age_seconds * 1e9)
            swept = await self._swept(pruning.Sweep(pruning.NEVER, ended_before, modes))
            removed.update(swept.removed)
        if retention.max_bytes is not None:
            sweep = await self._shrunk(pruning.Sweep(0, keep_modes=modes), retention.max_bytes)
            removed.update(sweep.removed)
        if removed.total() or (retention.max_bytes is not None and before > retention.max_bytes):
            await self._give_back_space()
        return Pruned(**removed, bytes_before=before, bytes_after=await self._read(self._bytes))

    async def statistics(self) -> Mapping[str, JSON]:
        return await self._read(self._count)

    # Machinery

    async def _index_texts(self) -> None:
        """Bring the index of words up to date, a little at a time, and most of the time let others do their work."""
        # The store was closed, or its database is away: the next search goes on.
        with suppress(StoreError):
            if not await self._read(text_index.behind):
                return
            more = True
            while more:
                start = time.monotonic()
                more = await self._write(lambda transaction: text_index.index_on(transaction, text_search.words_in))
                await asyncio.sleep(2 * (time.monotonic() - start))

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
            repeatable=request_id is not None,
        )

    async def _shrunk(self, sweep: pruning.Sweep, max_bytes: int) -> pruning.Sweep:
        """Remove until the store is no larger. What a row really takes is learnt on the way."""
        in_use = await self._read(self._bytes_in_use)
        real_bytes_a_byte = pruning.REAL_BYTES_A_BYTE
        while (excess := in_use - max_bytes) > 0:
            wanted = max(int(excess / real_bytes_a_byte), pruning.SMALLEST_STEP)
            sweep = await self._swept(dataclasses.replace(sweep, left=wanted, done=False))
            before, in_use = in_use, await self._read(self._bytes_in_use)
            if in_use >= before:
                break
            real_bytes_a_byte = (before - in_use) / (wanted - sweep.left)
        return sweep

    async def _swept(self, sweep: pruning.Sweep) -> pruning.Sweep:
        while not sweep.done:
            sweep = await self._write(partial(pruning.sweep_on, before=sweep))
        return sweep

    async def _catch_up_if_due(self) -> None:
        await self._notice_the_clock()
        time_ns = await self._read(work.next_time)
        if time_ns is not None and time_ns <= self._clock():
            await self._write(lambda transaction: work.catch_up(transaction, self._clock()))

    async def _until_next_time(self, at_most_seconds: float | None) -> float | None:
        """Seconds until time brings something, which nobody announces, or the given time if that is sooner."""
        time_ns = await self._read(work.next_time)
        if time_ns is None:
            return at_most_seconds
        seconds = max(0.0, (time_ns - self._clock()) / 1e9) + 0.001
        return seconds if at_most_seconds is None else min(seconds, at_most_seconds)

    async def _notice_the_clock(self) -> None:
        now = self._clock()
        if now < self._latest_ns:
            await self._write(lambda transaction: work.count_anew(transaction, now))
        self._latest_ns = now

    def _count(self, connection: Connection) -> dict[str, JSON]:
        counts: dict[str, JSON] = {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in sorted(METADATA.tables.items())
        }
        by_state = connection.execute(select(ROLLOUTS.c.state, func.count()).group_by(ROLLOUTS.c.state)).all()
        counted = Counter[str]()
        for row in by_state:
            counted[records.rollout_state(row.state)] += row[1]
        counts["rollouts_by_state"] = {state.value: counted[state] for state in RolloutState}
        counts["bytes"] = self._bytes(connection)
        return counts


def _may_remain(rollout_ids: Sequence[str], at_least: int | None) -> int:
    """How many of these rollouts need not have ended."""
    count = len(set(rollout_ids))
    if at_least is None:
        return 0
    if not 0 <= at_least <= count:
        raise StoreError(
            f"wait: at_least is {at_least}; give a number from 0 to {count}, for so many rollouts are named."
        )
    return count - at_least


def _lease_ns(lease_seconds: float) -> int:
    return int(checked_lease(lease_seconds) * 1e9)


_TOUCH = update(VERSION).values(version_num=VERSION.c.version_num)
