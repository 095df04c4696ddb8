"""The few SQL statements that all parts of a SQL store are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Executable, Integer, Row, Select, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from coterie.errors import StoreError
from coterie.store import arrival
from coterie.store.base import Page
from coterie.store.executing import VALUES, change_each, fetch
from coterie.store.garbage import no_search_for_garbage

Item = TypeVar("Item")

MOST_VALUES = 1000
"""Values in one ``IN (…)``; a database takes only so many parameters in a statement."""


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert rows, leaving those whose key exists already as they are. Gives the number inserted."""
    if not rows:
        return 0
    dialect = connection.dialect.name
    if dialect == "postgresql" and "seq" in table.columns:
        arrival.announce(connection, table)
    return change_each(connection, _insert_new(table, dialect), rows)


def replace(connection: Connection, table: Table, key: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; one whose key exists already takes the new values in all other columns."""
    if not rows:
        return
    dialect = connection.dialect.name
    if dialect == "postgresql":
        # Two transactions that replace the same rows in different orders would wait for each other forever.
        rows = sorted(rows, key=lambda row: [row[name] for name in key])
        if "seq" in table.columns:
            arrival.announce(connection, table)
    change_each(connection, _replace(table, tuple(key), dialect), rows)


def one_of(column: Column[Any]) -> ColumnElement[bool]:
    """The condition that ``column`` is one of the values that ``rows_in`` is given."""
    return column.in_(bindparam(VALUES, expanding=True))


def rows_in(connection: Connection, statement: Executable, values: Iterable[Any]) -> Iterator[Row[Any]]:
    """The rows of a statement with a condition ``one_of``, for a bounded number of values at a time."""
    for some in in_portions(values):
        yield from fetch(connection, statement, {VALUES: some})


def in_portions(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The distinct values in lists of bounded length."""
    distinct = list(dict.fromkeys(values))
    for start in range(0, len(distinct), MOST_VALUES):
        yield distinct[start : start + MOST_VALUES]


def grouped(
    connection: Connection,
    statement: Executable,
    column: Column[Any],
    keys: Sequence[str],
    item_of: Callable[[Any], Item],
) -> dict[str, tuple[Item, ...]]:
    """Items of a statement with a condition ``one_of``, by the value of ``column``, one entry a key."""
    items: dict[str, list[Item]] = {key: [] for key in keys}
    with no_search_for_garbage():
        for row in rows_in(connection, statement, keys):
            items[getattr(row, column.name)].append(item_of(row))
    return {key: tuple(entries) for key, entries in items.items()}


def page(
    connection: Connection,
    table: Table,
    filters: Mapping[str, Any],
    *,
    key: Column[Any],
    after: str | None,
    limit: int,
    item_of: Callable[[Any], Item],
    newest_first: bool = False,
) -> Page[Item]:
    """One page of a listing. ``filters`` maps column names to values, None meaning any.

    Raises:
        StoreError: ``limit`` is below 1, or ``after`` is no cursor.
    """
    if limit < 1:
        raise StoreError(f"listing {table.name}: limit is {limit}; it must be 1 or more.")
    given = {name: value for name, value in filters.items() if value is not None}
    statement = _page(table, tuple(given), key.name, after is not None, newest_first)
    given["rows"] = limit + 1
    if after is not None:
        given["after"] = _cursor_value(table, key, after)
    in_order_of_arrival = key.name == "seq" and not newest_first
    rows, more = page_of(
        connection,
        table,
        lambda: fetch(connection, statement, given),
        limit,
        in_order_of_arrival=in_order_of_arrival,
    )
    with no_search_for_garbage():
        items = tuple([item_of(row) for row in rows])
    return Page(
        items=items,
        cursor=str(getattr(rows[-1], key.name)) if more else None,
    )


@cache
def _page(table: Table, filters: Sequence[str], key: str, after: bool, newest_first: bool) -> Select[Any]:
    column = table.c[key]
    conditions: list[ColumnElement[bool]] = [table.c[name] == bindparam(name) for name in filters]
    if after:
        start = bindparam("after", type_=column.type)
        conditions.append(column < start if newest_first else column > start)
    order = column.desc() if newest_first else column.asc()
    return select(table).where(*conditions).order_by(order).limit(bindparam("rows", type_=Integer()))


def page_of(
    connection: Connection,
    table: Table,
    found: Callable[[], Sequence[Row[Any]]],
    limit: int,
    *,
    in_order_of_arrival: bool,
) -> tuple[Sequence[Row[Any]], bool]:
    """The rows of a page, and whether there are more. ``found`` looks for one more than ``limit``.

    In the order of arrival, when there are more, no row can appear any more before the last of these.
    """
    if not in_order_of_arrival or connection.dialect.name != "postgresql":
        rows = found()
        return rows[:limit], len(rows) > limit
    while True:
        settled = arrival.settled(connection, table)
        rows = found()
        if len(rows) <= limit:
            return rows, False
        certain = [row for row in rows[:limit] if row.seq <= settled]
        if certain:
            return certain, True
        arrival.await_next(connection, table, settled)


def _cursor_value(table: Table, key: Column[Any], after: str) -> int | str:
    if key.name != "seq":
        return after
    try:
        return int(after)
    except ValueError:
        raise StoreError(
            f"listing {table.name}: after={after!r} is no cursor. Pass the cursor of the page before, or None."
        ) from None


@cache
def _insert_new(table: Table, dialect: str) -> Any:
    # Inline: it need not tell which number a row got. SQLAlchemy keeps the count of inserted rows only when asked.
    return _INSERT[dialect](table).on_conflict_do_nothing().inline().execution_options(preserve_rowcount=True)


@cache
def _replace(table: Table, key: tuple[str, ...], dialect: str) -> Any:
    statement = _INSERT[dialect](table)
    new_values = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if column.name not in key and column.name != "seq"
    }
    return statement.on_conflict_do_update(index_elements=list(key), set_=new_values)


_INSERT: dict[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
