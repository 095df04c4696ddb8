"""One thread that writes, and commits what came together at once.

A commit waits for the disk; while it waits, further writes queue up and share the next commit. So many small writes
are fast although each one is on disk when it is acknowledged. One that fails takes nothing with it: then all are
taken back, and each is run in a savepoint of its own.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, StatementError

from coterie.errors import StoreError
from coterie.store.faults import is_fault, refused, unavailable
from coterie.store.wakeups import Wakeups

Result = TypeVar("Result")

LARGEST_GROUP = 256
"""Writes in one commit. Bounds how long the first of them waits."""


@dataclass(slots=True)
class Transaction:
    """What one write works with."""

    connection: Connection
    queued: bool = False
    """Set by a write that put a rollout into the queue."""
    ended: set[str] = field(default_factory=set)
    """Filled by a write with the rollouts that it ended."""


class Writer:
    """Takes writes from any thread and event loop and runs them one after another."""

    def __init__(
        self,
        connection: Connection,
        *,
        path: Path,
        lock_timeout_seconds: float,
        wakeups: Wakeups,
        watch_seconds: float,
        committed: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._committed = committed
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        self._driver = driver
        self._path = path
        self._lock_timeout_seconds = lock_timeout_seconds
        self._wakeups = wakeups
        self._watch_seconds = watch_seconds
        self._seen_version = self._data_version()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = Lock()
        # A daemon, so that a store that nobody closed does not keep a program from ending: what was acknowledged is
        # on disk already.
        self._thread = Thread(target=self._run, name=f"coterie-store-writer {path.name}", daemon=True)
        self._thread.start()

    async def write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
    ) -> Result:
        """Run ``write`` in a savepoint and return its result after the commit.

        A call that is cancelled before its write began leaves it out. If the write was done by then, ``undo`` takes
        it back.

        Raises:
            StoreError: the store is closed, or a value cannot be stored.
            StoreUnavailableError: the database cannot be written. Nothing was changed.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        job = _Job(write, undo, future)
        self._put(job)
        try:
            return await future
        except asyncio.CancelledError:
            # The result may have come in the very moment in which the caller was cancelled.
            if future.done() and not future.cancelled():
                self._take_back([job])
            raise

    def look_around(self) -> None:
        """Make the thread notice that somebody waits, so that it watches for changes by other processes."""
        self._jobs.put(_LOOK)

    def close(self) -> None:
        """Finish what was submitted, then end the thread and its connection. A second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _put(self, job: _Job[Any]) -> None:
        with self._lock:
            if self._closed:
                raise StoreError(f"store {self._path}: it is closed. Connect again.")
            self._jobs.put(job)

    def _run(self) -> None:
        try:
            while (group := self._next_group()) is not None:
                if group:
                    self._commit(group)
                if self._wakeups:
                    self._notice_others()
        finally:
            self._connection.close()

    def _next_group(self) -> list[_Job[Any]] | None:
        """The writes that wait now; empty when only the time came to look around; None at the end."""
        group: list[_Job[Any]] = []
        try:
            job = self._jobs.get(timeout=self._watch_seconds if self._wakeups else None)
            while job is not None:
                if job is not _LOOK and not job.abandoned():
                    group.append(job)
                if len(group) == LARGEST_GROUP:
                    return group
                job = self._jobs.get_nowait()
        except queue.Empty:
            return group
        if group:
            self._jobs.put(None)
            return group
        return None

    def _commit(self, group: list[_Job[Any]], *, apart: bool = False) -> None:
        """Run the writes and commit them at once. ``apart``: each in a savepoint, so that one fails alone."""
        try:
            self._driver.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._fail(group, error)
            return
        try:
            for job in group:
                if apart:
                    self._run_in_savepoint(job)
                elif not self._run_job(job):
                    break
            else:
                self._driver.execute("COMMIT")
                self._announce(group)
                self._resolve(group)
                self._committed()
                return
        except sqlite3.Error as error:
            self._roll_back()
            if len(group) == 1:
                self._fail(group, error)
            else:
                # One write that does not fit on the disk must not fail the others.
                for job in group:
                    self._commit([job])
            return
        # A savepoint costs as much as a small write, and most writes succeed: so only now.
        self._roll_back()
        if len(group) == 1:
            self._resolve(group)
        else:
            self._commit(group, apart=True)

    def _run_in_savepoint(self, job: _Job[Any]) -> None:
        self._driver.execute("SAVEPOINT one_write")
        if not self._run_job(job):
            self._driver.execute("ROLLBACK TO one_write")
        self._driver.execute("RELEASE one_write")

    def _run_job(self, job: _Job[Any]) -> bool:
        """Run one write; False when it failed. Raises sqlite3.Error only when the whole transaction is lost."""
        job.transaction = Transaction(self._connection)
        job.result = job.error = None
        try:
            job.result = job.write(job.transaction)
        except Exception as error:  # noqa: BLE001 - it goes to the caller of this write
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(cause, sqlite3.Error) and (is_fault(cause) or not self._driver.in_transaction):
                raise cause from None
            wrong_value = isinstance(error, (StatementError, UnicodeError, OverflowError, sqlite3.Error))
            job.error = refused(error, self._path) if wrong_value else error
            return False
        return True

    def _roll_back(self) -> None:
        if self._driver.in_transaction:
            self._driver.execute("ROLLBACK")

    def _fail(self, group: list[_Job[Any]], error: sqlite3.Error) -> None:
        for job in group:
            job.error = unavailable(error, self._path, self._lock_timeout_seconds)
        self._resolve(group)

    def _announce(self, group: list[_Job[Any]]) -> None:
        if not self._wakeups:
            return
        queued = False
        ended: set[str] = set()
        for job in group:
            if job.error is None and job.transaction is not None:
                queued = queued or job.transaction.queued
                ended |= job.transaction.ended
        if queued or ended:
            self._wakeups.announce(queued=queued, ended=ended)

    def _resolve(self, group: list[_Job[Any]]) -> None:
        """Tell the callers, with one wake-up of each event loop: a wake-up costs more than a small write."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
        for job in group:
            if job.future is not None:
                by_loop.setdefault(job.future.get_loop(), []).append(job)
        for loop, jobs in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._hand_over, jobs)
            except RuntimeError:  # The loop was closed, its callers are gone.
                self._take_back(jobs)

    def _hand_over(self, jobs: Sequence[_Job[Any]]) -> None:
        """Runs on the callers' loop."""
        self._take_back([job for job in jobs if not job.hand_over()])

    def _take_back(self, jobs: Sequence[_Job[Any]]) -> None:
        for job in jobs:
            if job.undo is not None and job.error is None:
                # A closed store raises: then it stays, and for a lease its time runs out.
                with suppress(StoreError):
                    self._put(job.undoing())

    def _notice_others(self) -> None:
        version = self._data_version()
        if version != self._seen_version:
            self._seen_version = version
            self._wakeups.wake_all()

    def _data_version(self) -> int:
        # On one connection it changes exactly when another connection has committed.
        return int(self._driver.execute("PRAGMA data_version").fetchone()[0])


@dataclass(slots=True, eq=False)
class _Job(Generic[Result]):
    write: Callable[[Transaction], Result]
    undo: Callable[[Transaction, Result], None] | None = None
    future: asyncio.Future[Result] | None = None
    """The caller's; None when nobody waits for the outcome."""
    result: Any = None
    error: Exception | None = None
    transaction: Transaction | None = None

    def abandoned(self) -> bool:
        return self.future is not None and (self.future.done() or self.future.get_loop().is_closed())

    def hand_over(self) -> bool:
        """Give the outcome to the caller; False when it is gone."""
        if self.future is None or self.future.done():
            return False
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)
        return True

    def undoing(self) -> _Job[None]:
        undo, result = self.undo, self.result
        assert undo is not None
        return _Job(lambda transaction: undo(transaction, result))


_LOOK: _Job[None] = _Job(lambda _transaction: None)
"""In the queue it only makes the thread look around."""
