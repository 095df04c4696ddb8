"""Searching spans by what they say and by what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, select

from coterie import conventions
from coterie.errors import StoreError
from coterie.store import records, text_index
from coterie.store.base import Page
from coterie.store.filters import SpanFilter
from coterie.store.statements import page_of
from coterie.store.tables import ROLLOUTS, SPANS
from coterie.vocabulary import Span

TEXT_ATTRIBUTES = (
    conventions.INPUT_MESSAGES,
    conventions.OUTPUT_MESSAGES,
    conventions.TOOL_NAME,
    conventions.TOOL_ARGUMENTS,
    conventions.TOOL_RESULT,
    conventions.ERROR_TYPE,
)
"""The attributes whose words can be searched for."""

ROWS_AT_ONCE = 500


def search_spans(
    connection: Connection, where: SpanFilter, *, newest_first: bool, after: str | None, limit: int
) -> Page[Span]:
    """A page of spans that fit."""
    if limit < 1:
        raise StoreError(f"searching spans: limit is {limit}; it must be 1 or more.")
    words = words_of(where.text or "")

    def found() -> Sequence[Row[Any]]:
        fitting = (
            row
            for row in _candidates(connection, where, words, newest_first, _place(after), limit)
            if not words or words <= words_in(row)
        )
        return list(islice(fitting, limit + 1))

    rows, more = page_of(connection, SPANS, found, limit, in_order_of_arrival=not newest_first)
    return Page(tuple(records.span_of(row) for row in rows), str(rows[-1].seq) if more else None)


def uses_index(where: SpanFilter) -> bool:
    """True for a search by words in more than the few spans of a rollout or a trace."""
    few = where.rollout_id is not None or where.attempt_id is not None or where.trace_id is not None
    return not few and bool(words_of(where.text or ""))


def words_in(row: Row[Any]) -> set[str]:
    """The words that a span's row can be found by."""
    return words_of(said_in(records.span_of(row)))


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"[^\W_]+", text.casefold()))


def said_in(span: Span) -> str:
    """All text of a span in which words are searched for."""
    values = (span.attributes.get(name) for name in TEXT_ATTRIBUTES)
    texts = [span.name, span.status_message, *(_plain_text(value) for value in values)]
    texts += [_plain_text(value) for event in span.events for value in event.attributes.values()]
    return "\n".join(texts)


def _plain_text(value: object) -> str:
    """The strings of a value; JSON text counts as what it stands for, so that no escape hides a word."""
    if isinstance(value, str):
        if value[:1] in ("[", "{", '"'):
            try:
                return _plain_text_of_parts(records.of_json(value))
            except (ValueError, RecursionError):
                return value
        return value
    return _plain_text_of_parts(value)


def _plain_text_of_parts(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(_plain_text_of_parts(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return "\n".join(_plain_text_of_parts(part) for part in value)
    return "" if value is None else str(value)


def _conditions(where: SpanFilter) -> list[ColumnElement[bool]]:
    equal = {
        name: value
        for name in ("rollout_id", "attempt_id", "trace_id", "name", "role", "agent_path", "operation", "status")
        if (value := getattr(where, name)) is not None
    }
    conditions: list[ColumnElement[bool]] = [SPANS.c[name] == value for name, value in equal.items()]
    if where.run_id is not None:
        conditions.append(SPANS.c.rollout_id.in_(select(ROLLOUTS.c.id).where(ROLLOUTS.c.run_id == where.run_id)))
    if where.started_from_ns is not None:
        conditions.append(SPANS.c.start_ns >= where.started_from_ns)
    if where.started_before_ns is not None:
        conditions.append(SPANS.c.start_ns < where.started_before_ns)
    return conditions


def _candidates(
    connection: Connection, where: SpanFilter, words: set[str], newest_first: bool, after: int | None, limit: int
) -> Iterator[Row[Any]]:
    """The spans among which those that fit are, in order."""
    statement = select(SPANS).where(*_conditions(where))
    until = text_index.indexed_until(connection) if uses_index(where) else None
    if until is None:
        return _rows(connection, statement, SPANS.c.seq, newest_first, after, limit)
    indexed, key = text_index.may_hold(connection, statement, words)
    parts = [(indexed.where(key <= until), key), (statement.where(SPANS.c.seq > until), SPANS.c.seq)]
    return chain.from_iterable(
        _rows(connection, part, key, newest_first, after, limit)
        for part, key in (reversed(parts) if newest_first else parts)
    )


def _rows(
    connection: Connection,
    statement: Select[Any],
    key: ColumnElement[int],
    newest_first: bool,
    after: int | None,
    limit: int,
) -> Iterator[Row[Any]]:
    """The rows of a statement on spans, some at a time, in the order of ``key``, which is their number."""
    at_once = min(limit + 1, ROWS_AT_ONCE)
    while True:
        more = [] if after is None else [key < after if newest_first else key > after]
        order = key.desc() if newest_first else key.asc()
        rows = connection.execute(statement.where(*more).order_by(order).limit(at_once)).all()
        yield from rows
        if len(rows) < at_once:
            return
        after = rows[-1].seq
        at_once = ROWS_AT_ONCE


def _place(after: str | None) -> int | None:
    if after is None:
        return None
    try:
        return int(after)
    except ValueError:
        raise StoreError(
            f"searching spans: after={after!r} is no cursor. Pass the cursor of the page before, or None."
        ) from None
