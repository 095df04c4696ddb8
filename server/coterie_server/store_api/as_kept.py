"""Spans as the database keeps them: the JSON of their attributes is passed on as it is, neither read nor written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from orjson import Fragment

from coterie.store import records
from coterie.store.base import Page, Store
from coterie.store.sql import SqlStore
from coterie.vocabulary import Span


async def get_spans(store: Store, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Span]]:
    """``Store.get_spans``, ready for ``wire.encode`` and for nothing else."""
    if not isinstance(store, SqlStore):
        return await store.get_spans(attempt_ids)
    return cast("Mapping[str, Sequence[Span]]", await store.get_spans_as(_fields, attempt_ids))


async def list_spans(
    store: Store, *, rollout_id: str | None, trace_id: str | None, after: str | None, limit: int
) -> Page[Span]:
    """``Store.list_spans``, ready for ``wire.encode`` and for nothing else."""
    filters: dict[str, Any] = {"rollout_id": rollout_id, "trace_id": trace_id, "after": after, "limit": limit}
    if not isinstance(store, SqlStore):
        return await store.list_spans(**filters)
    return cast("Page[Span]", await store.list_spans_as(_fields, **filters))


def _fields(row: Any) -> dict[str, object]:
    return {
        "trace_id": row.trace_id,
        "span_id": row.span_id,
        "name": row.name,
        "start_ns": row.start_ns,
        "end_ns": row.end_ns,
        "parent_id": row.parent_id,
        "rollout_id": row.rollout_id,
        "attempt_id": row.attempt_id,
        "status": row.status,
        "status_message": row.status_message,
        "attributes": Fragment(row.attributes),
        "events": () if row.events == "[]" else records.span_of(row).events,
    }
