"""The order of arrival on PostgreSQL, so that a listing's cursor misses nothing.

A row gets its number, ``seq``, when it is inserted, and is seen when its transaction ends: after a row has been seen,
one with a smaller number may still appear, behind the cursor. So a transaction that is about to insert announces it,
by an advisory lock named after the table and the last number that was given out by then: its own numbers will be
greater. The smallest of these announcements is where a page of a listing that has a cursor must end. Locks end with
their transaction, whatever becomes of it, and no number of transactions is kept, so a copy of the database may go on
elsewhere.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import Connection, Table, TextClause, text


def announce(connection: Connection, table: Table) -> None:
    """Announce that this transaction is about to insert rows; call it before the first of them."""
    transaction, tables = connection.info.get(_ANNOUNCED, (None, set()))
    if transaction is not connection.get_transaction():
        tables = set()
        connection.info[_ANNOUNCED] = (connection.get_transaction(), tables)
    if table.name not in tables:
        connection.execute(_announce(table.name))
        tables.add(table.name)


def settled(connection: Connection, table: Table) -> int:
    """The number up to which no row can appear any more for statements that begin after this one."""
    number: int = connection.execute(_settled(table.name)).scalar_one()
    return number


def await_next(connection: Connection, table: Table, number: int) -> None:
    """Wait until the transactions that announced inserts from ``number`` on have ended."""
    connection.execute(_await(table.name), {"number": number})


_ANNOUNCED = "coterie_announced"
"""Key of a connection's transaction and the tables for which it has announced its inserts."""

# The high half of a lock's key is the table, the low half the last number before: of a number that is given out now
# and of one that was given out a moment ago the distance is known, even when the low half starts anew.
_LAST = "CASE WHEN is_called THEN last_value ELSE last_value - 1 END"


@cache
def _announce(table: str) -> TextClause:
    return text(
        f"SELECT pg_advisory_xact_lock_shared(('{table}'::regclass::oid::int8 << 32) | (({_LAST}) & 4294967295)) "  # noqa: S608 - our own name
        f"FROM {table}_seq_seq"
    )


@cache
def _settled(table: str) -> TextClause:
    # The inner query depends on the outer one, so that it looks at the locks after the number was read: a row up to
    # that number whose lock is gone by then is seen by whoever looks next.
    return text(
        f"SELECT coalesce((SELECT min(last - ((last - objid::int8) & 4294967295)) FROM pg_locks "  # noqa: S608 - our own name
        f"WHERE locktype = 'advisory' AND objsubid = 1 AND classid = '{table}'::regclass::oid "
        f"AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND last IS NOT NULL), last) "
        f"FROM (SELECT {_LAST} AS last FROM {table}_seq_seq) AS sequence"
    )


@cache
def _await(table: str) -> TextClause:
    return text(
        f"SELECT pg_advisory_xact_lock(('{table}'::regclass::oid::int8 << 32) | (cast(:number AS int8) & 4294967295))"
    )
