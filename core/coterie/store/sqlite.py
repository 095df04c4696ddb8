"""The store in one SQLite file: the default, needs no server, and several processes may share it.

Writes go through one thread that commits what came together at once (``writer.py``); reads go through a few
connections of their own and never wait for writes. Who waits in this process is woken at once. SQLite cannot tell
other processes that something changed: while somebody waits, the file's change counter is looked at every
``WATCH_SECONDS``, and at no other time.
"""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Self, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.pool import NullPool

from coterie.errors import StoreError, StoreUnavailableError
from coterie.store import schema, sqlite_space
from coterie.store.checkpoints import LOG_PAGES, Checkpoints
from coterie.store.faults import refused, unavailable
from coterie.store.sql import SqlStore
from coterie.store.wakeups import Wakeups
from coterie.store.writer import Transaction, Writer
from coterie.vocabulary import now_ns

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 10.0
"""How long a write waits for another process that writes."""
WATCH_SECONDS = 0.05
"""How often a waiting process looks for changes that other processes made."""
READERS = 4
"""Connections that read side by side."""


class SqliteStore(SqlStore):
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
        self._checkpoints = Checkpoints(self._driver_connection, path)
        self._writer = Writer(
            connection,
            path=path,
            lock_timeout_seconds=lock_timeout_seconds,
            wakeups=self._wakeups,
            watch_seconds=WATCH_SECONDS,
            committed=self._checkpoints.written,
        )
        self._reader = threading.local()
        self._reader_connections: list[Connection] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix=f"coterie-store-reader {path.name}")

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    # Machinery

    async def _write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
        repeatable: bool = True,  # noqa: ARG002 - the outcome is always known
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
        except (StatementError, UnicodeError, OverflowError) as error:
            raise refused(error, self.path) from error

    def _watch(self) -> None:
        self._writer.look_around()

    def _bytes(self, connection: Connection) -> int:  # noqa: ARG002 - SQLite cannot tell
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def _bytes_in_use(self, connection: Connection) -> int:
        return sqlite_space.bytes_in_use(_driver_of(connection))

    async def _give_back_space(self) -> None:
        if await self._read(lambda connection: sqlite_space.must_be_written_anew(_driver_of(connection))):
            # It takes as long as the file is large; the writes of this store wait for it.
            await self._write(lambda transaction: _set_lock_timeout(transaction.connection, _LONG_SECONDS))
            try:
                await self._beside(sqlite_space.write_anew)
            finally:
                await self._write(
                    lambda transaction: _set_lock_timeout(transaction.connection, self._lock_timeout_seconds)
                )
        await self._beside(sqlite_space.give_back)

    async def _beside(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do some work on the file that needs a connection of its own, in no transaction."""

        def do() -> None:
            with closing(self._driver_connection()) as driver:
                work(driver)

        try:
            await asyncio.to_thread(do)
        except sqlite3.Error as error:
            # What was to be removed is removed, and its room is used again.
            _log.warning(
                "store %s: the room of removed rows could not be given back to the disk: %s. It is filled again; "
                "prune again when there is room and nobody else holds the file.",
                self.path,
                error,
            )

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
            self._checkpoints.close()
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
        new = not self.path.exists() or self.path.stat().st_size == 0
        connection = sqlite3.connect(
            self.path, timeout=self._lock_timeout_seconds, isolation_level=None, check_same_thread=False
        )
        # FULL: a commit returns when the write-ahead log is on disk. 8192: a span of an LLM call has about 3 kB, of
        # which the default page would hold only one.
        for pragma in (
            "page_size = 8192",
            # In a file that has tables this would be a write, which waits for locks.
            *([sqlite_space.MADE_FOR_IT] if new else []),
            "synchronous = FULL",
            "foreign_keys = ON",
            "cache_size = -32000",
            f"wal_autocheckpoint = {LOG_PAGES}",
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


def _set_lock_timeout(connection: Connection, seconds: float) -> None:
    _driver_of(connection).execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")


_LONG_SECONDS = 24 * 3600


def _driver_of(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
