"""Running SQL statements with few steps a row.

A statement is written once with SQLAlchemy. On SQLite, where a statement takes a few microseconds, going through
SQLAlchemy each time would cost ten times as much as the database: so its text is compiled once, and run on the
driver's connection with plain tuples. On other databases, which are reached through a socket, SQLAlchemy runs it.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import sqlite

Row = Any
"""A result row with an attribute a column."""
Parameters = Mapping[str, Any]

VALUES = "values"
"""The parameter that holds a list of values, for a condition ``column IN (…)``."""


def fetch(connection: Connection, statement: Executable, parameters: Parameters | None = None) -> Sequence[Row]:
    """All rows that a statement gives."""
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, parameters).all()
    cursor, plan = _run(connection, statement, parameters or {})
    rows = cursor.fetchall()
    if plan.row is None:
        plan.row = _row_type(tuple(column[0] for column in cursor.description))
    return list(map(plan.row, rows))


def first(connection: Connection, statement: Executable, parameters: Parameters | None = None) -> Row | None:
    """The first row of a statement that gives at most a few, or None."""
    return next(iter(fetch(connection, statement, parameters)), None)


def change(connection: Connection, statement: Executable, parameters: Parameters | None = None) -> int:
    """Run a statement that changes rows; gives how many."""
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, parameters).rowcount
    cursor, _ = _run(connection, statement, parameters or {})
    return cursor.rowcount


def change_each(connection: Connection, statement: Executable, rows: Sequence[Parameters]) -> int:
    """Run a statement once for each set of parameters, which all have the same names; gives how many rows changed."""
    if not rows:
        return 0
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, list(rows)).rowcount
    plan = _plan(statement, columns=tuple(rows[0]))
    given = [{**plan.defaults, **row} for row in rows] if plan.defaults else rows
    return _driver(connection).executemany(plan.text, map(plan.in_order, given)).rowcount


@dataclass(slots=True)
class _Plan:
    """A compiled statement."""

    text: str
    defaults: Parameters
    """Values that are part of the statement."""
    in_order: Callable[[Parameters], tuple[Any, ...]]
    """The values of all parameters, in the order of their places."""
    row: Callable[[Sequence[Any]], Row] | None = None


def _run(connection: Connection, statement: Executable, parameters: Parameters) -> tuple[sqlite3.Cursor, _Plan]:
    values = parameters.get(VALUES)
    if values is None:
        plan = _plan(statement)
        given = {**plan.defaults, **parameters}
    else:
        # Lists are filled up to the next power of two, so that few lengths occur and each is compiled once.
        count = 1 << max(0, len(values) - 1).bit_length()
        plan = _plan(statement, count)
        filled = [*values, *repeat(values[-1] if values else None, count - len(values))]
        given = {**plan.defaults, **parameters, **dict(zip(_value_names(count), filled, strict=True))}
    return _driver(connection).execute(plan.text, plan.in_order(given)), plan


@lru_cache(maxsize=1000)
def _plan(statement: Executable, values: int = 0, columns: tuple[str, ...] | None = None) -> _Plan:
    """The plan of a statement for so many ``VALUES``, or for an insertion into these columns."""
    compiled = statement.compile(dialect=_SQLITE, column_keys=columns)  # type: ignore[attr-defined]
    defaults = {name: bound.value for bound, name in compiled.bind_names.items() if not bound.required}
    expanded = compiled.construct_expanded_state(
        {**dict.fromkeys(compiled.bind_names.values()), VALUES: list(range(values))}
    )
    names = expanded.positiontup or ()
    in_order = itemgetter(*names) if len(names) > 1 else lambda given: tuple(given[name] for name in names)
    return _Plan(expanded.statement, defaults, in_order)


@lru_cache(maxsize=20)
def _value_names(count: int) -> tuple[str, ...]:
    return tuple(f"{VALUES}_{number}" for number in range(1, count + 1))


@lru_cache(maxsize=1000)
def _row_type(columns: tuple[str, ...]) -> Callable[[Sequence[Any]], Row]:
    row: Any = namedtuple("Row", columns, rename=True)  # type: ignore[misc]
    make: Callable[[Sequence[Any]], Row] = row._make
    return make


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


_SQLITE = sqlite.dialect()
