"""The store in one SQLite file: the default, needs no server, and several processes may share it.

Writes go through one thread that commits what came together at once (``writer.py``); reads go through a few
connections of their own and never wait for writes. Who waits in this process is woken at once. SQLite cannot tell
other processes that something changed: while somebody waits, the file's change counter is looked at every
``WATCH_SECONDS``, and at no other time.
"""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from coterie.errors import ConfigError, LeaseLostError, StoreError, StoreUnavailableError
from coterie.store import records, resources, runs, schema, traces, work
from coterie.store.base import Page, Store
from coterie.store.faults import unavailable
from coterie.store.tables import METADATA, ROLLOUTS
from coterie.store.wakeups import Wakeups
from coterie.store.writer import Transaction, Writer
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
    now_ns,
)

Result = TypeVar("Result")

LOCK_TIMEOUT_SECONDS = 10.0
"""How long a write waits for another process that writes."""
WATCH_SECONDS = 0.05
"""How often a waiting process looks for changes that other processes made."""
READERS = 4
"""Connections that read side by side."""


class SqliteStore(Store):
    """A store in a SQLite file. Usable from any thread and event loop, also from several at once; not across a fork."""

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        lock_timeout_seconds: float = LOCK_TIMEOUT_SECONDS,
        clock: Callable[[], int] = now_ns,
    ) -> Self:
        """Open the file, which is created if it does not exist; its folder must. Older tables are brought up to date.

        ``clock`` gives the present time in nanoseconds, by which leases run out.

        Raises:
            StoreUnavailableError: it cannot be opened, is no SQLite database, is read-only or locked.
            SchemaVersionError: it was written by an unknown version of Coterie, or not by Coterie.
        """
        return await asyncio.to_thread(cls, Path(path), lock_timeout_seconds, clock)

    def __init__(self, path: Path, lock_timeout_seconds: float, clock: Callable[[], int]) -> None:
        path = path.expanduser().absolute()
        self.path = path
        self._lock_timeout_seconds = lock_timeout_seconds
        self._clock = clock
        self._process = os.getpid()
        self._wakeups = Wakeups()
        self._closing = threading.Lock()
        self._closed = False
        _raise_if_too_old()
        _raise_if_no_database(path)
        self._engine = create_engine(
            "sqlite://", creator=self._driver_connection, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        try:
            connection = self._prepared_connection()
        except sqlite3.Error as error:
            raise unavailable(error, path, lock_timeout_seconds) from error
        self._writer = Writer(
            connection,
            path=path,
            lock_timeout_seconds=lock_timeout_seconds,
            wakeups=self._wakeups,
            watch_seconds=WATCH_SECONDS,
        )
        self._reader = threading.local()
        self._reader_connections: list[Connection] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix=f"coterie-store-reader {path.name}")

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

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
    ) -> Sequence[Lease]:
        if limit < 1:
            raise StoreError(f"lease: limit is {limit}; it must be 1 or more.")
        lease_ns = _lease_ns(lease_seconds)
        give_up_at = time.monotonic() + wait_seconds
        with self._wakeups.waiter() as waiter:
            while True:
                leases = await self._lease_now(worker, limit, lease_ns, run_id)
                left = give_up_at - time.monotonic()
                if leases or left <= 0:
                    return leases
                self._writer.look_around()
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
                self._writer.look_around()
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

    async def _write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
    ) -> Result:
        self._raise_if_forked()
        return await self._writer.write(write, undo=undo)

    async def _read(self, read: Callable[[Connection], Result]) -> Result:
        self._raise_if_forked()
        try:
            future = self._readers.submit(self._read_now, read)
        except RuntimeError:
            raise StoreError(f"store {self.path}: it is closed. Connect again.") from None
        return await asyncio.wrap_future(future)

    def _read_now(self, read: Callable[[Connection], Result]) -> Result:
        """Read in a transaction, so that one call sees one state of the database."""
        try:
            connection: Connection | None = getattr(self._reader, "connection", None)
            if connection is None:
                connection = self._engine.connect()
                self._reader.connection = connection
                self._reader_connections.append(connection)
            driver = _driver_of(connection)
            driver.execute("BEGIN")
            try:
                return read(connection)
            finally:
                driver.execute("ROLLBACK")
        except (sqlite3.Error, DBAPIError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(cause, sqlite3.Error):
                raise unavailable(cause, self.path, self._lock_timeout_seconds) from error
            raise

    async def _lease_now(self, worker: str, limit: int, lease_ns: int, run_id: str | None) -> list[Lease]:
        return await self._write(
            lambda transaction: work.lease(
                transaction, worker, limit=limit, lease_ns=lease_ns, run_id=run_id, now=self._clock()
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
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        counts["bytes"] = sum(file.stat().st_size for file in files if file.exists())
        return counts

    def _close(self) -> None:
        if self._process != os.getpid():
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wakeups.wake_all()
            self._readers.shutdown()
            for connection in self._reader_connections:
                connection.close()
            # Last, so that it is the one that folds the write-ahead log into the file.
            self._writer.close()
            self._engine.dispose()

    def _raise_if_forked(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                f"store {self.path}: it was opened in process {self._process}, and this is its fork {os.getpid()}. "
                "Connect again in the child process."
            )

    def _driver_connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._lock_timeout_seconds, isolation_level=None, check_same_thread=False
        )
        # FULL: a commit returns when the write-ahead log is on disk. 8192: a span of an LLM call has about 3 kB, of
        # which the default page would hold only one.
        for pragma in (
            "page_size = 8192",
            "synchronous = FULL",
            "foreign_keys = ON",
            "cache_size = -32000",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _prepared_connection(self) -> Connection:
        """The connection of the writer, on tables of the newest version."""
        connection: Connection | None = None
        try:
            connection = self._engine.connect()
            driver = _driver_of(connection)
            if schema.migration_due(connection, str(self.path)):
                self._use_write_ahead_log(driver)
                driver.execute("BEGIN IMMEDIATE")
                # Another process may have done it in the meantime.
                if schema.migration_due(connection, str(self.path)):
                    schema.migrate(connection)
                driver.execute("COMMIT")
            else:
                self._use_write_ahead_log(driver)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error):
                raise error.orig from error
            raise
        return connection

    def _use_write_ahead_log(self, driver: sqlite3.Connection) -> None:
        # SQLite does not wait for locks when it changes the mode.
        give_up_at = time.monotonic() + self._lock_timeout_seconds
        while driver.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                driver.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.02)


def _raise_if_too_old() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreUnavailableError(
            f"this Python comes with SQLite {sqlite3.sqlite_version}; the store needs "
            f"{'.'.join(map(str, _OLDEST_SQLITE))} or newer (UPDATE … RETURNING). Use a newer Python."
        )


_OLDEST_SQLITE = (3, 35, 0)


def _raise_if_no_database(path: Path) -> None:
    if path.is_dir():
        raise StoreUnavailableError(f"store {path}: it is a folder. Give the path of a file in it.")
    if not path.parent.is_dir():
        raise StoreUnavailableError(f"store {path}: the folder {path.parent} does not exist. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise StoreUnavailableError(
            f"store {path}: the folder {path.parent} is read-only, and SQLite keeps its write-ahead log beside the "
            "file. Make it writable, or choose another path."
        )
    if not path.exists():
        return
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreUnavailableError(
            f"store {path}: it is read-only. Make the file writable, or choose another path. Nothing was changed."
        )
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_HEADER))
    if start and start != _SQLITE_HEADER:
        raise StoreUnavailableError(
            f"store {path}: it is not a SQLite database. Choose another path. Nothing was changed."
        )


_SQLITE_HEADER = b"SQLite format 3\x00"


def _driver_of(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _lease_ns(lease_seconds: float) -> int:
    if not (math.isfinite(lease_seconds) and lease_seconds > 0):
        raise ConfigError(f"lease_seconds is {lease_seconds}; give a positive number of seconds.")
    return int(lease_seconds * 1e9)
