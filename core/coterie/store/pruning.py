"""Removing what a retention no longer keeps, a little at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from coterie.store import traces, work
from coterie.store.retention import Retention
from coterie.store.tables import ATTEMPTS, REWARDS, ROLLOUTS, SPANS
from coterie.store.writer import Transaction

ROLLOUTS_AT_ONCE = 100
"""Rollouts in one transaction, at most."""
SPANS_AT_ONCE = 2000
"""Spans in one transaction, unless a single rollout has more."""
BYTES_OF_A_ROW = 300
"""About what a row takes beside its long texts, with its entries in the indexes."""


@dataclass(slots=True)
class Removed:
    """What one transaction removed."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by table."""
    size: int = 0
    """About how many bytes they took."""

    def __bool__(self) -> bool:
        return any(self.counts.values())


def remove_some(transaction: Transaction, retention: Retention, *, ended_before: int | None, enough: int) -> Removed:
    """Remove what ended first, rollouts and spans of no rollout, in one small transaction.

    ``ended_before`` in nanoseconds spares what ended then or later. It stops when about ``enough`` bytes are gone.
    """
    connection = transaction.connection
    rollouts = connection.execute(_oldest_rollouts(retention, ended_before)).all()
    loose = connection.execute(_oldest_loose_spans(ended_before)).all()
    if rollouts and (not loose or rollouts[0].finished_ns <= loose[0].end_ns):
        until = loose[0].end_ns if loose else None
        chosen, size = _as_many_as_needed(connection, rollouts, until, enough)
        return Removed(work.delete_rollouts(transaction, chosen), size)
    until = rollouts[0].finished_ns if rollouts else None
    chosen_seqs: list[int] = []
    size = 0
    for span in loose:
        if chosen_seqs and (size >= enough or (until is not None and span.end_ns > until)):
            break
        chosen_seqs.append(span.seq)
        size += span.size
    return Removed({"spans": traces.delete_spans(transaction, SPANS.c.seq, chosen_seqs)}, size)


def _as_many_as_needed(
    connection: Connection, rollouts: Sequence[Row[Any]], until: int | None, enough: int
) -> tuple[list[str], int]:
    chosen: list[str] = []
    size = spans = 0
    for rollout in rollouts:
        if chosen and (size >= enough or spans >= SPANS_AT_ONCE or (until is not None and rollout.finished_ns > until)):
            break
        more_spans, more_bytes = connection.execute(_size_of_spans(SPANS.c.rollout_id == rollout.id)).one()
        rows = sum(
            connection.execute(select(func.count()).where(table.c.rollout_id == rollout.id)).scalar_one()
            for table in (ATTEMPTS, REWARDS)
        )
        chosen.append(rollout.id)
        spans += more_spans
        size += (more_bytes or 0) + (rows + 1) * BYTES_OF_A_ROW
    return chosen, size


def _oldest_rollouts(retention: Retention, ended_before: int | None) -> Select[Any]:
    statement = select(ROLLOUTS.c.id, ROLLOUTS.c.finished_ns).where(ROLLOUTS.c.finished_ns.is_not(None))
    if retention.keep_modes:
        statement = statement.where(ROLLOUTS.c.mode.not_in([mode.value for mode in retention.keep_modes]))
    if ended_before is not None:
        statement = statement.where(ROLLOUTS.c.finished_ns < ended_before)
    return statement.order_by(ROLLOUTS.c.finished_ns, ROLLOUTS.c.seq).limit(ROLLOUTS_AT_ONCE)


def _oldest_loose_spans(ended_before: int | None) -> Select[Any]:
    # By their beginning, of which there is an index: of spans that overlap, one that ended later may go first.
    statement = select(SPANS.c.seq, SPANS.c.end_ns, _SPAN_BYTES.label("size")).where(traces.OF_NO_ROLLOUT)
    if ended_before is not None:
        statement = statement.where(SPANS.c.start_ns < ended_before, SPANS.c.end_ns < ended_before)
    return statement.order_by(SPANS.c.start_ns, SPANS.c.seq).limit(SPANS_AT_ONCE)


def _size_of_spans(which: ColumnElement[bool]) -> Select[Any]:
    return select(func.count(), func.sum(_SPAN_BYTES)).where(which)


_SPAN_BYTES = func.length(SPANS.c.attributes) + func.length(SPANS.c.events) + BYTES_OF_A_ROW
