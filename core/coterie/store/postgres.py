"""The store in a PostgreSQL database: for many writers on many hosts, and several servers side by side.

Reads and writes run in threads on a bounded pool of connections; each write is one transaction at READ COMMITTED with
explicit row locks (``locks.py``). Small writes of spans that come together share a transaction. Whoever queues work or
ends rollouts notifies within the transaction, and one listening connection a store wakes who waits (``listening.py``).
Listings miss nothing although transactions end in another order than they began (``arrival.py``).

A connection that breaks in the middle of a write is replaced and the write repeated, which is safe because every write
is idempotent by id.
"""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, StatementError

from coterie.errors import StoreError, StoreUnavailableError
from coterie.store import postgres_faults, postgres_space, records, schema, traces
from coterie.store.listening import Listener, payload_of
from coterie.store.postgres_address import PostgresAddress
from coterie.store.sql import SqlStore
from coterie.store.wakeups import Wakeups
from coterie.store.writer import Transaction
from coterie.vocabulary import Span, new_id, now_ns

Result = TypeVar("Result")

LOCK_TIMEOUT_SECONDS = 10
"""How long a statement waits for a lock that another transaction holds."""
STANDSTILL_SECONDS = 120
"""After so long without a statement in the middle of a transaction, the server takes this program for gone."""
CONFLICTS = 5
"""How often a write is tried again that stood in the way of another."""
RECONNECT_SECONDS = 15.0
"""How long a database that went away is waited for. Calls that come later, while it is still away, fail at once."""
LARGEST_BATCH = 5000
"""Spans in one transaction, unless one write brings more."""


class PostgresStore(SqlStore):
    """A store in a PostgreSQL database. Usable from any thread and event loop; not across a fork."""

    @classmethod
    async def open(cls, address: str | PostgresAddress, *, clock: Callable[[], int] = now_ns) -> Self:
        """Connect to the database, which must exist. Its tables are made or brought up to date.

        ``clock`` gives the present time in nanoseconds, by which leases run out.

        Raises:
            ConfigError: the address is not understood.
            StoreUnavailableError: it cannot be reached, refuses the user, is read-only.
            SchemaVersionError: it was written by an unknown version of Coterie, or not by Coterie.
        """
        if isinstance(address, str):
            address = PostgresAddress.of(address)
        return await asyncio.to_thread(cls, address, clock)

    def __init__(self, address: PostgresAddress, clock: Callable[[], int]) -> None:
        self.address = address
        self._clock = clock
        self._process = os.getpid()
        self._wakeups = Wakeups()
        self._closing = threading.Lock()
        self._closed = False
        self._name = new_id("st")
        self._away_since: float | None = None
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=address.connections,
            max_overflow=0,
            isolation_level="READ COMMITTED",
            hide_parameters=True,
        )
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            self._channel = self._prepare()
        except (DBAPIError, psycopg.Error) as error:
            self._engine.dispose()
            raise self._told(error) from error
        except BaseException:
            self._engine.dispose()
            raise
        self._listener = Listener(self._connect_to_listen, self._channel, self._name, self._wakeups, address.shown)
        # Reads never wait for writes, nor writes for reads.
        readers = address.connections // 2
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="coterie-store-reader")
        self._writers = ThreadPoolExecutor(address.connections - readers, thread_name_prefix="coterie-store-writer")
        self._span_writes: deque[_SpanWrite] = deque()

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    async def add_spans(self, spans: Sequence[Span]) -> None:
        self._raise_if_forked()
        write = _SpanWrite([records.span_row(span) for span in spans])
        self._span_writes.append(write)
        try:
            self._submit(self._writers, self._write_spans)
        except StoreError:
            # Unless those who write before the store is closed have taken it already.
            if write.done.cancel():
                raise
        await asyncio.wrap_future(write.done)

    # Machinery

    async def _write(
        self,
        write: Callable[[Transaction], Result],
        *,
        undo: Callable[[Transaction, Result], None] | None = None,
        repeatable: bool = True,
    ) -> Result:
        self._raise_if_forked()
        future = self._submit(self._writers, self._write_now, write, undo, repeatable)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: self._take_back(done, undo))
            raise

    async def _read(self, read: Callable[[Connection], Result]) -> Result:
        self._raise_if_forked()
        return await asyncio.wrap_future(self._submit(self._readers, self._read_now, read))

    def _watch(self) -> None:
        self._listener.start()

    def _bytes(self, connection: Connection) -> int:
        return postgres_space.bytes_on_disk(connection)

    def _bytes_in_use(self, connection: Connection) -> int:
        return postgres_space.bytes_in_use(connection)

    async def _give_back_space(self) -> None:
        await self._read(postgres_space.give_back)

    def _write_now(
        self,
        write: Callable[[Transaction], Result],
        undo: Callable[[Transaction, Result], None] | None = None,
        repeatable: bool = True,
    ) -> Result:
        """Run a write in a transaction of its own; again when it stood in another's way or the connection broke."""
        conflicts, lost = 0, 0
        while True:
            result: Result
            committing = False
            try:
                with self._connected(self._engine) as connection, connection.begin() as begun:
                    transaction = Transaction(connection)
                    result = write(transaction)
                    self._notify(transaction)
                    committing = True
                    begun.commit()
            except (DBAPIError, psycopg.Error) as error:
                cause = _cause_of(error)
                if postgres_faults.is_conflict(cause) and conflicts < CONFLICTS:
                    conflicts += 1
                    time.sleep(random.uniform(0, 0.01 * 2**conflicts))
                    continue
                unclear = committing and not repeatable
                if lost == 0 and postgres_faults.is_lost_connection(cause) and (not unclear or undo is not None):
                    lost += 1
                    if unclear and undo is not None:
                        write = _after(undo, result, write)
                    continue
                raise self._told(error, outcome_unknown=unclear) from error
            except (StatementError, UnicodeError, OverflowError) as error:
                raise postgres_faults.refused(error, self.address.shown) from error
            if self._wakeups and (transaction.queued or transaction.ended):
                self._wakeups.announce(queued=transaction.queued, ended=transaction.ended)
            return result

    def _read_now(self, read: Callable[[Connection], Result]) -> Result:
        lost = 0
        while True:
            try:
                with self._connected(self._reading) as connection:
                    return read(connection)
            except (DBAPIError, psycopg.Error) as error:
                if lost == 0 and postgres_faults.is_lost_connection(_cause_of(error)):
                    lost += 1
                    continue
                raise self._told(error) from error
            except (StatementError, UnicodeError, OverflowError) as error:
                raise postgres_faults.refused(error, self.address.shown) from error

    def _write_spans(self) -> None:
        """Write what waits now in one transaction; one write that fails takes nothing with it."""
        batch: list[_SpanWrite] = []
        count = 0
        while self._span_writes and count < LARGEST_BATCH:
            # Another thread may have taken the last one.
            with suppress(IndexError):
                write = self._span_writes.popleft()
                if write.done.set_running_or_notify_cancel():
                    batch.append(write)
                    count += len(write.rows)
        if self._span_writes:
            with suppress(StoreError):
                self._submit(self._writers, self._write_spans)
        if len(batch) > 1 and self._written_together(batch):
            return
        for write in batch:
            try:
                self._write_now(partial(traces.add_spans, rows=write.rows))
            except BaseException as error:  # noqa: BLE001 - it goes to the caller of this write
                write.done.set_exception(error)
            else:
                write.done.set_result(None)

    def _written_together(self, batch: Sequence[_SpanWrite]) -> bool:
        rows = [row for write in batch for row in write.rows]
        try:
            self._write_now(partial(traces.add_spans, rows=rows))
        except StoreUnavailableError as error:
            for write in batch:
                write.done.set_exception(error)
        except Exception:  # noqa: BLE001 - which of them it was shows when each is written alone
            return False
        else:
            for write in batch:
                write.done.set_result(None)
        return True

    def _notify(self, transaction: Transaction) -> None:
        if transaction.queued or transaction.ended:
            payload = payload_of(self._name, queued=transaction.queued, ended=transaction.ended)
            transaction.connection.execute(_NOTIFY, {"channel": self._channel, "payload": payload})

    def _take_back(self, done: Future[Result], undo: Callable[[Transaction, Result], None]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        result = done.result()
        # A closed store raises: then it stays, and for a lease its time runs out.
        with suppress(StoreError):
            self._submit(self._writers, self._write_now, lambda transaction: undo(transaction, result))

    def _submit(self, threads: ThreadPoolExecutor, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        try:
            return threads.submit(work, *arguments)
        except RuntimeError:
            raise StoreError(f"store {self.address.shown}: it is closed. Connect again.") from None

    def _close(self) -> None:
        if self._process != os.getpid():
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wakeups.wake_all()
            self._listener.close()
            self._readers.shutdown()
            self._writers.shutdown()
            self._engine.dispose()

    def _raise_if_forked(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                f"store {self.address.shown}: it was opened in process {self._process}, and this is its fork "
                f"{os.getpid()}. Connect again in the child process."
            )

    def _told(self, error: DBAPIError | psycopg.Error, *, outcome_unknown: bool = False) -> StoreError:
        """The error for a person."""
        cause = _cause_of(error)
        if postgres_faults.is_wrong_value(cause):
            return postgres_faults.refused(cause, self.address.shown)
        return postgres_faults.unavailable(cause, self.address.shown, outcome_unknown=outcome_unknown)

    def _connected(self, engine: Engine) -> Connection:
        """A connection of the pool. A server that restarts needs a moment until it lets anybody in."""
        while True:
            try:
                connection = engine.connect()
            except DBAPIError as error:
                now = time.monotonic()
                self._away_since = self._away_since or now
                waited = now - self._away_since
                if waited > RECONNECT_SECONDS or not postgres_faults.is_lost_connection(_cause_of(error)):
                    raise
                time.sleep(0.1)
            else:
                self._away_since = None
                return connection

    def _connect(self) -> psycopg.Connection:
        connection = psycopg.connect(**self.address.parameters, autocommit=True)
        try:
            connection.execute(
                _SETTINGS,
                {
                    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
                    "standstill": f"{STANDSTILL_SECONDS}s",
                    "search_path": self._search_path(connection),
                },
            )
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_to_listen(self) -> psycopg.Connection:
        return psycopg.connect(**self.address.parameters, autocommit=True)

    def _search_path(self, connection: psycopg.Connection) -> str | None:
        return None if self.address.schema is None else sql.Identifier(self.address.schema).as_string(connection)

    def _prepare(self) -> str:
        """Make the tables or bring them up to date; gives the channel on which changes of them are notified."""
        where = self.address.shown
        with self._engine.connect() as connection:
            encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
            if encoding != "UTF8":
                raise StoreUnavailableError(
                    f"store {where}: the database is encoded in {encoding}, which does not hold all text. "
                    "Create one with `createdb --encoding=UTF8 --template=template0 NAME`."
                )
            if self._schema_of(connection) is None or schema.migration_due(connection, where):
                # Servers that start together wait here for the first of them.
                connection.execute(_LOCK_MIGRATION)
                if self._schema_of(connection) is None:
                    self._create_schema(connection)
                if schema.migration_due(connection, where):
                    schema.migrate(connection)
            channel = f"coterie_{self._schema_of(connection)}"
            connection.commit()
            return channel

    def _schema_of(self, connection: Connection) -> int | None:
        number: int | None = connection.execute(_SCHEMA).scalar()
        return number

    def _create_schema(self, connection: Connection) -> None:
        if self.address.schema is None:
            raise StoreUnavailableError(
                f"store {self.address.shown}: the database has no schema that this user may use. Name one in the "
                "address, ?schema=coterie; it is made if it does not exist."
            )
        quoted = connection.dialect.identifier_preparer.quote_identifier(self.address.schema)
        connection.execute(text(f"CREATE SCHEMA {quoted.replace(':', chr(92) + ':')}"))


@dataclass(slots=True)
class _SpanWrite:
    """Spans of one call, that wait to be written together with others."""

    rows: Sequence[Mapping[str, Any]]
    done: Future[None] = field(default_factory=Future)


def _after(
    undo: Callable[[Transaction, Result], None], result: Result, write: Callable[[Transaction], Result]
) -> Callable[[Transaction], Result]:
    """Take ``result`` back, of which nobody knows whether it was committed, and write again."""

    def both(transaction: Transaction) -> Result:
        undo(transaction, result)
        return write(transaction)

    return both


def _cause_of(error: DBAPIError | psycopg.Error) -> psycopg.Error:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause if isinstance(cause, psycopg.Error) else psycopg.OperationalError(str(cause))


# Acknowledged means on disk, whatever the server's default is; a stricter default stays.
_SETTINGS = """
SELECT set_config('lock_timeout', %(lock_timeout)s, false),
       set_config('idle_in_transaction_session_timeout', %(standstill)s, false),
       set_config('search_path', coalesce(%(search_path)s, current_setting('search_path')), false),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                  WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)
"""
_SCHEMA = text("SELECT oid::int8 FROM pg_namespace WHERE nspname = current_schema()")
_LOCK_MIGRATION = text("SELECT pg_advisory_xact_lock(hashtextextended('coterie tables', 0))")
_NOTIFY = text("SELECT pg_notify(:channel, :payload)")
