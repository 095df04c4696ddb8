"""Searching spans by what they say and by what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from coterie import conventions
from coterie.errors import StoreError
from coterie.store import records
from coterie.store.base import Page
from coterie.store.filters import SpanFilter
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
    fitting = (
        row
        for row in _rows(connection, _conditions(where), newest_first, _place(after))
        if not words or words <= words_of(said_in(records.span_of(row)))
    )
    rows = list(islice(fitting, limit + 1))
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(tuple(records.span_of(row) for row in rows), str(rows[-1].seq) if more else None)


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


def _rows(
    connection: Connection, conditions: list[ColumnElement[bool]], newest_first: bool, after: int | None
) -> Iterator[Row[Any]]:
    key = SPANS.c.seq
    while True:
        more = [] if after is None else [key < after if newest_first else key > after]
        order = key.desc() if newest_first else key.asc()
        statement = select(SPANS).where(*conditions, *more).order_by(order).limit(ROWS_AT_ONCE)
        rows = connection.execute(statement).all()
        yield from rows
        if len(rows) < ROWS_AT_ONCE:
            return
        after = rows[-1].seq


def _place(after: str | None) -> int | None:
    if after is None:
        return None
    try:
        return int(after)
    except ValueError:
        raise StoreError(
            f"searching spans: after={after!r} is no cursor. Pass the cursor of the page before, or None."
        ) from None
