"""Removing what a retention no longer keeps, a little at a time, what ended first first."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select, tuple_

from coterie.store import traces, work
from coterie.store.statements import one_of, rows_in
from coterie.store.tables import ATTEMPTS, REWARDS, ROLLOUTS, SPANS
from coterie.store.writer import Transaction

ROLLOUTS_AT_ONCE = 100
"""Rollouts in one transaction, at most."""
SPANS_AT_ONCE = 2000
"""Spans in one transaction, unless a single rollout has more."""
BYTES_OF_A_ROW = 300
"""About what a row takes beside its long texts, with its entries in the indexes."""
REAL_BYTES_A_BYTE = 4.0
"""More than a store can become smaller by for a byte that seems to be removed: a first guess, never too much."""
SMALLEST_STEP = 200_000
"""Bytes to remove before looking again how large the store is. Less may not free a page."""
NEVER = 2**63 - 1
"""A time after all others, in nanoseconds."""


@dataclass
class Sweep:
    """How far one goes, and went, through what has ended.

    Spans of no rollout are found by going through all spans in the order in which they began, no further than the
    rollouts that are removed beside them. So of spans that overlap, one that ended later may go first.
    """

    left: int
    """About how many bytes are to be removed still."""
    ended_before: int = NEVER
    """What ended then or later, in nanoseconds, stays."""
    keep_modes: Sequence[str] = ()
    removed: Counter[str] = field(default_factory=Counter)
    """Rows that were removed, by table."""
    done: bool = False
    """Nothing is left that may be removed, or enough is removed."""
    rollouts_from: int = 0
    """No rollout that ended before this time is to be removed any more."""
    looked_until: int = -NEVER
    """All spans that began before this time were looked at, ..."""
    last_looked: tuple[int, int] | None = None
    """... and of those that began at this time, all up to this number."""
    loose: deque[Any] = field(default_factory=deque)
    """Spans of no rollout that were found and not removed yet."""


def sweep_on(transaction: Transaction, before: Sweep) -> Sweep:
    """Remove a little in this transaction. ``before`` is left as it is, so that the transaction may be repeated."""
    connection = transaction.connection
    sweep = copy.copy(before)
    sweep.loose, sweep.removed = before.loose.copy(), before.removed.copy()
    rollouts = _oldest_rollouts(connection, sweep)
    until = rollouts[-1].finished_ns if rollouts else sweep.ended_before
    if sweep.looked_until <= until:
        _look_on(connection, sweep, until)
    rollout_ids, seqs = _choose(connection, sweep, rollouts)
    sweep.removed.update(work.delete_rollouts(transaction, rollout_ids))
    sweep.removed["spans"] += traces.delete_spans(transaction, SPANS.c.seq, seqs)
    sweep.done = sweep.left <= 0 or not (rollout_ids or seqs or sweep.looked_until <= until)
    return sweep


def _choose(connection: Connection, sweep: Sweep, rollouts: Sequence[Any]) -> tuple[list[str], list[int]]:
    """What goes next, in the order of its end."""
    waiting = deque(rollouts)
    spans_of, size_of = _sizes(connection, rollouts)
    rollout_ids: list[str] = []
    seqs: list[int] = []
    spans = 0
    while (waiting or sweep.loose) and sweep.left > 0 and spans < SPANS_AT_ONCE:
        if sweep.loose and (not waiting or sweep.loose[0].end_ns <= waiting[0].finished_ns):
            span = sweep.loose.popleft()
            seqs.append(span.seq)
            spans += 1
            sweep.left -= span.size
        elif waiting[0].finished_ns < sweep.looked_until:
            rollout = waiting.popleft()
            rollout_ids.append(rollout.id)
            spans += spans_of[rollout.id]
            sweep.left -= size_of[rollout.id]
        else:
            break
    return rollout_ids, seqs


def _oldest_rollouts(connection: Connection, sweep: Sweep) -> Sequence[Any]:
    statement = select(ROLLOUTS.c.id, ROLLOUTS.c.finished_ns).where(
        ROLLOUTS.c.finished_ns >= sweep.rollouts_from, ROLLOUTS.c.finished_ns < sweep.ended_before
    )
    if sweep.keep_modes:
        statement = statement.where(ROLLOUTS.c.mode.not_in(sweep.keep_modes))
    # Held, lest one goes back into the queue before it is removed.
    statement = (
        statement.order_by(ROLLOUTS.c.finished_ns, ROLLOUTS.c.seq)
        .limit(ROLLOUTS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    rollouts: Sequence[Any] = connection.execute(statement).all()
    sweep.rollouts_from = rollouts[0].finished_ns if rollouts else sweep.ended_before
    return rollouts


def _look_on(connection: Connection, sweep: Sweep, until: int) -> None:
    """Look at the next few spans that began up to ``until``."""
    statement = select(
        SPANS.c.seq, SPANS.c.start_ns, SPANS.c.end_ns, _SPAN_BYTES.label("size"), traces.OF_NO_ROLLOUT.label("loose")
    ).where(SPANS.c.start_ns <= until)
    if sweep.last_looked is not None:
        statement = statement.where(tuple_(SPANS.c.start_ns, SPANS.c.seq) > tuple_(*sweep.last_looked))
    spans = connection.execute(statement.order_by(SPANS.c.start_ns, SPANS.c.seq).limit(SPANS_AT_ONCE)).all()
    sweep.loose.extend(span for span in spans if span.loose and span.end_ns < sweep.ended_before)
    sweep.looked_until = spans[-1].start_ns if len(spans) == SPANS_AT_ONCE else until + 1
    if spans:
        sweep.last_looked = (spans[-1].start_ns, spans[-1].seq)


def _sizes(connection: Connection, rollouts: Sequence[Any]) -> tuple[Counter[str], Counter[str]]:
    """The number of spans of each rollout, and about how many bytes it takes with all that belongs to it."""
    spans: Counter[str] = Counter()
    sizes = Counter({rollout.id: BYTES_OF_A_ROW for rollout in rollouts})
    for row in rows_in(connection, _SPANS_OF_ROLLOUTS, sizes):
        spans[row.rollout_id] = row.number
        sizes[row.rollout_id] += int(row.size)
    for statement in (_ATTEMPTS_OF_ROLLOUTS, _REWARDS_OF_ROLLOUTS):
        for row in rows_in(connection, statement, list(sizes)):
            sizes[row.rollout_id] += row.number * BYTES_OF_A_ROW
    return spans, sizes


def _of_rollouts(table: Table, *figures: Any) -> Select[Any]:
    return (
        select(table.c.rollout_id, func.count().label("number"), *figures)
        .where(one_of(table.c.rollout_id))
        .group_by(table.c.rollout_id)
    )


_SPAN_BYTES = func.length(SPANS.c.attributes) + func.length(SPANS.c.events) + BYTES_OF_A_ROW
_SPANS_OF_ROLLOUTS = _of_rollouts(SPANS, func.sum(_SPAN_BYTES).label("size"))
_ATTEMPTS_OF_ROLLOUTS = _of_rollouts(ATTEMPTS)
_REWARDS_OF_ROLLOUTS = _of_rollouts(REWARDS)
