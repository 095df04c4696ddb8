"""Row locks on PostgreSQL, where several transactions write at once. SQLite lets one write at a time: nothing to do.

Every change of the state of a rollout or of its attempts is made by a transaction that holds the rollout's row. Who
waits for several rows takes them in the order of their ids, rollouts before attempts; who must not wait (leasing, what
time has brought) skips what is held. So there are no deadlocks among them. ``FOR NO KEY UPDATE`` lets others add rows
that refer to those held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select

from coterie.store.statements import in_portions, one_of
from coterie.store.tables import ATTEMPTS, ROLLOUTS
from coterie.vocabulary import AttemptState


def lock_rollouts(connection: Connection, ids: Iterable[str], *, to_delete: bool = False) -> None:
    """Wait for these rollouts and hold them until the transaction ends. Read them afterwards, not before.

    ``to_delete`` keeps others from adding rows that refer to them, too.
    """
    _lock(connection, _ROLLOUTS_TO_DELETE if to_delete else _ROLLOUTS, ids)


def lock_rollouts_of(connection: Connection, attempt_ids: Iterable[str]) -> None:
    """The same for the rollouts of these attempts."""
    _lock(connection, _ROLLOUTS_OF, attempt_ids)


def lock_attempts(connection: Connection, ids: Iterable[str]) -> None:
    """Wait for these attempts and hold them until the transaction ends."""
    _lock(connection, _ATTEMPTS, ids)


def lock_running_attempts_at(connection: Connection, rollout_ids: Iterable[str]) -> None:
    """The same for the running attempts at these rollouts."""
    _lock(connection, _RUNNING_AT, rollout_ids)


def lock_name(connection: Connection, name: str) -> None:
    """Wait until no other transaction holds this name, and hold it until the transaction ends."""
    if is_postgresql(connection):
        connection.execute(_NAME, {"name": name})


def is_postgresql(connection: Connection) -> bool:
    """True for PostgreSQL."""
    return connection.dialect.name == "postgresql"


def _lock(connection: Connection, statement: Select[Any], values: Iterable[str]) -> None:
    if is_postgresql(connection):
        # Sorted as a whole, by code points as in the statements: the order within each portion would not do.
        for some in in_portions(sorted(values)):
            connection.execute(statement, {"values": some}).all()


_BY_ROLLOUT, _BY_ATTEMPT = ROLLOUTS.c.id.collate("C"), ATTEMPTS.c.id.collate("C")
_ROLLOUTS_TO_DELETE = select(ROLLOUTS.c.id).where(one_of(ROLLOUTS.c.id)).order_by(_BY_ROLLOUT).with_for_update()
_ROLLOUTS = select(ROLLOUTS.c.id).where(one_of(ROLLOUTS.c.id)).order_by(_BY_ROLLOUT).with_for_update(key_share=True)
_ROLLOUTS_OF = (
    select(ROLLOUTS.c.id)
    .join(ATTEMPTS, ATTEMPTS.c.rollout_id == ROLLOUTS.c.id)
    .where(one_of(ATTEMPTS.c.id))
    .order_by(_BY_ROLLOUT)
    .with_for_update(key_share=True, of=ROLLOUTS)
)
_ATTEMPTS = select(ATTEMPTS.c.id).where(one_of(ATTEMPTS.c.id)).order_by(_BY_ATTEMPT).with_for_update(key_share=True)
_RUNNING_AT = (
    select(ATTEMPTS.c.id)
    .where(one_of(ATTEMPTS.c.rollout_id), ATTEMPTS.c.state == AttemptState.RUNNING.value)
    .order_by(_BY_ATTEMPT)
    .with_for_update(key_share=True)
)
_NAME = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("name"), 0)))
