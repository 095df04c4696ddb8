"""Spans and rewards: what was seen of an attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, delete, or_, select

from coterie.errors import NotFoundError
from coterie.store import records
from coterie.store.base import Page
from coterie.store.executing import VALUES, change
from coterie.store.statements import grouped, in_portions, insert_new, one_of, page, rows_in
from coterie.store.tables import ATTEMPTS, REWARDS, ROLLOUTS, SPANS
from coterie.store.writer import Transaction
from coterie.vocabulary import Reward

Item = TypeVar("Item")
RowValues = Mapping[str, Any]


def add_spans(transaction: Transaction, rows: Sequence[RowValues]) -> None:
    """Add spans that are new."""
    insert_new(transaction.connection, SPANS, rows)


def get_spans(
    connection: Connection, attempt_ids: Sequence[str], item_of: Callable[[Any], Item]
) -> dict[str, tuple[Item, ...]]:
    """What ``item_of`` makes of each span's row, for all spans of each attempt, by start time."""
    return grouped(connection, _SPANS_OF_ATTEMPTS, SPANS.c.attempt_id, attempt_ids, item_of)


def list_spans(
    connection: Connection, filters: Mapping[str, Any], after: str | None, limit: int, item_of: Callable[[Any], Item]
) -> Page[Item]:
    """A page of what ``item_of`` makes of each span's row, in the order in which they arrived."""
    return page(connection, SPANS, filters, key=SPANS.c.seq, after=after, limit=limit, item_of=item_of)


def delete_traces(transaction: Transaction, trace_ids: Sequence[str]) -> None:
    """Remove the spans of these traces that belong to no rollout of this store."""
    loose = [row.seq for row in rows_in(transaction.connection, _LOOSE_SPANS_OF_TRACES, trace_ids)]
    delete_spans(transaction, SPANS.c.seq, loose)


def delete_spans(transaction: Transaction, column: Column[Any], values: Iterable[Any]) -> int:
    """Remove the spans whose ``column`` has one of these values; gives how many there were."""
    statement = _DELETE_BY[column.name]
    return sum(change(transaction.connection, statement, {VALUES: some}) for some in in_portions(values))


def add_rewards(transaction: Transaction, rows: Sequence[RowValues]) -> None:
    """Add rewards that are new, of attempts that exist."""
    attempt_ids = [row["attempt_id"] for row in rows]
    rollout_of = {row.id: row.rollout_id for row in rows_in(transaction.connection, _ROLLOUTS_OF, attempt_ids)}
    for row in rows:
        if row["attempt_id"] not in rollout_of:
            raise NotFoundError(
                f"reward {row['name']!r}: no attempt {row['attempt_id']!r} in this store. Nothing was written."
            )
        if rollout_of[row["attempt_id"]] != row["rollout_id"]:
            raise NotFoundError(
                f"reward {row['name']!r}: attempt {row['attempt_id']!r} belongs to rollout "
                f"{rollout_of[row['attempt_id']]!r}, not to {row['rollout_id']!r}. Nothing was written."
            )
    insert_new(transaction.connection, REWARDS, rows)


def get_rewards(connection: Connection, attempt_ids: Sequence[str]) -> dict[str, tuple[Reward, ...]]:
    """All rewards of each attempt, in order of time."""
    return grouped(connection, _REWARDS_OF_ATTEMPTS, REWARDS.c.attempt_id, attempt_ids, records.reward_of)


def list_rewards(connection: Connection, rollout_id: str | None, after: str | None, limit: int) -> Page[Reward]:
    """A page of rewards in the order in which they arrived."""
    filters = {"rollout_id": rollout_id}
    return page(connection, REWARDS, filters, key=REWARDS.c.seq, after=after, limit=limit, item_of=records.reward_of)


OF_NO_ROLLOUT = ~or_(
    select(ROLLOUTS.c.id).where(ROLLOUTS.c.id == SPANS.c.rollout_id).exists(),
    select(ATTEMPTS.c.id).where(ATTEMPTS.c.id == SPANS.c.attempt_id).exists(),
)
"""The condition that a span belongs to no rollout of this store."""

_LOOSE_SPANS_OF_TRACES = select(SPANS.c.seq).where(one_of(SPANS.c.trace_id), OF_NO_ROLLOUT)
_DELETE_BY = {
    column.name: delete(SPANS).where(one_of(column)) for column in (SPANS.c.seq, SPANS.c.rollout_id, SPANS.c.attempt_id)
}
_SPANS_OF_ATTEMPTS = select(SPANS).where(one_of(SPANS.c.attempt_id)).order_by(SPANS.c.start_ns, SPANS.c.seq)
_REWARDS_OF_ATTEMPTS = select(REWARDS).where(one_of(REWARDS.c.attempt_id)).order_by(REWARDS.c.time_ns, REWARDS.c.seq)
_ROLLOUTS_OF = select(ATTEMPTS.c.id, ATTEMPTS.c.rollout_id).where(one_of(ATTEMPTS.c.id))
