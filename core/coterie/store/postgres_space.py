"""How much room a store takes in a PostgreSQL database, and giving it back."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, Table, func, literal, select, text

from coterie.store.tables import METADATA

BYTES_OF_A_ROW = 28
"""What a row takes beside its values."""
BYTES_OF_AN_ENTRY = 40
"""About what a row's entry in one index takes."""


def bytes_on_disk(connection: Connection) -> int:
    """Tables with their indexes and long values, including the room that removed rows have left."""
    size: int = connection.execute(_ON_DISK).scalar_one()
    return size


def bytes_in_use(connection: Connection) -> int:
    """About what the present rows take. Reads all of them, but not their long values."""
    return sum(int(connection.execute(_in_use(table)).scalar_one()) for table in METADATA.tables.values())


def give_back(connection: Connection) -> None:
    """Make the room of removed rows free for new ones, while others go on; what is free at the end of a file goes back
    to the disk. The connection must be in no transaction.
    """
    connection.execute(_VACUUM)


@cache
def _in_use(table: Table) -> Select[Any]:
    of_a_row = BYTES_OF_A_ROW + BYTES_OF_AN_ENTRY * (1 + len(table.indexes))
    values = sum((func.coalesce(func.pg_column_size(column), 0) for column in table.columns), literal(of_a_row))
    return select(func.coalesce(func.sum(values), 0)).select_from(table)


_ON_DISK = text(
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::int8 FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
)
_VACUUM = text("VACUUM (ANALYZE, SKIP_LOCKED) spans, rewards, attempts, rollouts")
