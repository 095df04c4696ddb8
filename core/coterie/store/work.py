"""Tasks and the queue: how rollouts are queued, leased, ended, taken back and withdrawn.

Each function does its work inside a transaction that somebody else begins and commits. All changes of a rollout's or
an attempt's state are in this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select, update

from coterie.errors import LeaseLostError, NotFoundError, StoreError
from coterie.store import records
from coterie.store.base import Page
from coterie.store.statements import grouped, in_portions, insert_new, page, replace, rows_in
from coterie.store.tables import ATTEMPTS, RESOURCES, ROLLOUTS, TASKS
from coterie.store.traces import add_rewards, add_spans
from coterie.store.writer import Transaction
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    FailureCause,
    Lease,
    Rollout,
    RolloutState,
    Task,
    new_id,
)

RowValues = Mapping[str, Any]


def add_tasks(transaction: Transaction, rows: Sequence[RowValues]) -> None:
    """Add or replace tasks."""
    replace(transaction.connection, TASKS, ["id"], rows)


def get_tasks(connection: Connection, ids: Sequence[str]) -> tuple[Task, ...]:
    """The tasks of these ids, in this order."""
    found = {row.id: records.task_of(row) for row in rows_in(connection, select(TASKS), TASKS.c.id, ids)}
    _raise_for_missing("task", ids, found)
    return tuple(found[id_] for id_ in ids)


def list_tasks(
    connection: Connection, dataset: str | None, split: str | None, after: str | None, limit: int
) -> Page[Task]:
    """A page of tasks by id."""
    filters = {"dataset": dataset, "split": split}
    return page(connection, TASKS, filters, key=TASKS.c.id, after=after, limit=limit, item_of=records.task_of)


def enqueue(transaction: Transaction, rollouts: Sequence[Rollout], rows: Sequence[RowValues]) -> None:
    """Queue rollouts whose ids are new."""
    connection = transaction.connection
    task_ids = [rollout.task_id for rollout in rollouts]
    found = {row.id for row in rows_in(connection, select(TASKS.c.id), TASKS.c.id, task_ids)}
    _raise_for_missing("task", task_ids, found)
    _raise_for_unpublished(connection, rollouts)
    if insert_new(connection, ROLLOUTS, rows):
        transaction.queued = True


def lease(
    transaction: Transaction, worker: str, *, limit: int, lease_ns: int, run_id: str | None, now: int
) -> list[Lease]:
    """Take queued rollouts, oldest first, after returning leases that ran out."""
    connection = transaction.connection
    expire(transaction, now)
    queued = select(ROLLOUTS).where(ROLLOUTS.c.state == RolloutState.QUEUED.value)
    if run_id is not None:
        queued = queued.where(ROLLOUTS.c.run_id == run_id)
    taken = connection.execute(queued.order_by(ROLLOUTS.c.seq).limit(limit)).all()
    if not taken:
        return []
    ids = [row.id for row in taken]
    last_number = select(ATTEMPTS.c.rollout_id, func.max(ATTEMPTS.c.number).label("number")).group_by(
        ATTEMPTS.c.rollout_id
    )
    numbers = {row.rollout_id: row.number for row in rows_in(connection, last_number, ATTEMPTS.c.rollout_id, ids)}
    attempts = [
        Attempt(
            id=new_id("at"),
            rollout_id=id_,
            number=numbers.get(id_, 0) + 1,
            worker=worker,
            state=AttemptState.RUNNING,
            started_ns=now,
            lease_expires_ns=now + lease_ns,
        )
        for id_ in ids
    ]
    connection.execute(ATTEMPTS.insert(), [records.attempt_row(attempt) for attempt in attempts])
    for some in in_portions(ids):
        connection.execute(update(ROLLOUTS).where(ROLLOUTS.c.id.in_(some)).values(state=RolloutState.RUNNING.value))
    rollouts = get_rollouts(connection, ids)
    tasks = get_tasks(connection, [rollout.task_id for rollout in rollouts])
    return [Lease(attempt, rollout, task) for attempt, rollout, task in zip(attempts, rollouts, tasks, strict=True)]


def heartbeat(transaction: Transaction, attempt_ids: Sequence[str], *, lease_ns: int, now: int) -> frozenset[str]:
    """Prolong the leases of attempts that run still; gives their ids."""
    held: set[str] = set()
    for some in in_portions(attempt_ids):
        prolonged = (
            update(ATTEMPTS)
            .where(ATTEMPTS.c.id.in_(some), ATTEMPTS.c.state == AttemptState.RUNNING.value)
            .values(lease_expires_ns=now + lease_ns)
            .returning(ATTEMPTS.c.id)
        )
        held.update(transaction.connection.execute(prolonged).scalars())
    return frozenset(held)


def finish(
    transaction: Transaction,
    attempt_id: str,
    state: AttemptState,
    *,
    cause: FailureCause | None,
    error: str | None,
    warnings: Sequence[str],
    span_rows: Sequence[RowValues],
    reward_rows: Sequence[RowValues],
    retry: bool,
    now: int,
) -> Rollout | LeaseLostError:
    """End an attempt. The error that says that its lease was lost is given, not raised: its spans must be kept."""
    connection = transaction.connection
    row = connection.execute(select(ATTEMPTS).where(ATTEMPTS.c.id == attempt_id)).first()
    if row is None:
        raise NotFoundError(f"no attempt {attempt_id!r} in this store. Use the id that lease() gave.")
    attempt = records.attempt_of(row)
    if state is AttemptState.FAILED and cause is None:
        cause = FailureCause.ERROR
    elif state is not AttemptState.FAILED:
        cause = None
    add_spans(transaction, span_rows)
    if attempt.state is AttemptState.RUNNING:
        add_rewards(transaction, reward_rows)
        return _end(transaction, attempt, state, cause, error=error, warnings=warnings, retry=retry, now=now)
    if (attempt.state, attempt.cause) == (state, cause):
        add_rewards(transaction, reward_rows)
        return get_rollouts(connection, [attempt.rollout_id])[0]
    ended = f"{attempt.state} ({attempt.cause})" if attempt.cause else str(attempt.state)
    return LeaseLostError(
        f"attempt {attempt_id!r} of rollout {attempt.rollout_id!r} is no longer worker {attempt.worker!r}'s: it ended "
        f"as {ended}, so it cannot end as {state}. Its spans were kept; drop its result."
    )


def give_back(transaction: Transaction, attempt_ids: Sequence[str], *, now: int) -> None:
    """Put leased rollouts back into the queue as if they had not been taken; the attempts do not count."""
    running = select(ATTEMPTS).where(ATTEMPTS.c.state == AttemptState.RUNNING.value)
    for row in list(rows_in(transaction.connection, running, ATTEMPTS.c.id, attempt_ids)):
        error = "the worker went away before it began"
        _end(transaction, records.attempt_of(row), AttemptState.CANCELLED, None, error=error, now=now)


def expire(transaction: Transaction, now: int) -> None:
    """End the attempts whose lease ran out."""
    overdue = (
        select(ATTEMPTS)
        .where(ATTEMPTS.c.state == AttemptState.RUNNING.value, ATTEMPTS.c.lease_expires_ns <= now)
        .order_by(ATTEMPTS.c.lease_expires_ns)
    )
    for row in transaction.connection.execute(overdue).all():
        attempt = records.attempt_of(row)
        error = f"worker {attempt.worker!r} sent no heartbeat before its lease ran out"
        _end(transaction, attempt, AttemptState.FAILED, FailureCause.LEASE_EXPIRED, error=error, now=now)


def next_expiry(connection: Connection) -> int | None:
    """When the next lease runs out, or None when there is none."""
    running = ATTEMPTS.c.state == AttemptState.RUNNING.value
    expiry: int | None = connection.execute(select(func.min(ATTEMPTS.c.lease_expires_ns)).where(running)).scalar()
    return expiry


def cancel(transaction: Transaction, rollout_ids: Sequence[str], *, reason: str, now: int) -> None:
    """Withdraw rollouts that have not ended, with their running attempts."""
    connection = transaction.connection
    rollouts = get_rollouts(connection, rollout_ids)
    open_ids = [rollout.id for rollout in rollouts if not rollout.state.terminal]
    for some in in_portions(open_ids):
        connection.execute(
            update(ATTEMPTS)
            .where(ATTEMPTS.c.rollout_id.in_(some), ATTEMPTS.c.state == AttemptState.RUNNING.value)
            .values(state=AttemptState.CANCELLED.value, ended_ns=now)
        )
        connection.execute(
            update(ROLLOUTS)
            .where(ROLLOUTS.c.id.in_(some))
            .values(state=RolloutState.CANCELLED.value, reason=records.storable(reason), finished_ns=now)
        )
    transaction.ended.update(open_ids)


def get_rollouts(connection: Connection, ids: Sequence[str]) -> tuple[Rollout, ...]:
    """The rollouts of these ids, in this order."""
    found = {row.id: records.rollout_of(row) for row in rows_in(connection, select(ROLLOUTS), ROLLOUTS.c.id, ids)}
    _raise_for_missing("rollout", ids, found)
    return tuple(found[id_] for id_ in ids)


def list_rollouts(connection: Connection, filters: Mapping[str, Any], after: str | None, limit: int) -> Page[Rollout]:
    """A page of rollouts in the order in which they were queued."""
    return page(connection, ROLLOUTS, filters, key=ROLLOUTS.c.seq, after=after, limit=limit, item_of=records.rollout_of)


def open_rollouts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of these rollouts that have not ended."""
    statement = select(ROLLOUTS.c.id, ROLLOUTS.c.state)
    states = {row.id: RolloutState(row.state) for row in rows_in(connection, statement, ROLLOUTS.c.id, ids)}
    _raise_for_missing("rollout", ids, states)
    return {id_ for id_, state in states.items() if not state.terminal}


def get_attempts(connection: Connection, rollout_ids: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """The attempts of each rollout, first to last."""
    return grouped(connection, ATTEMPTS, ATTEMPTS.c.rollout_id, rollout_ids, [ATTEMPTS.c.number], records.attempt_of)


def _end(
    transaction: Transaction,
    attempt: Attempt,
    state: AttemptState,
    cause: FailureCause | None,
    *,
    error: str | None,
    warnings: Sequence[str] = (),
    retry: bool = True,
    now: int,
) -> Rollout:
    """End a running attempt and say what becomes of its rollout."""
    connection = transaction.connection
    connection.execute(
        update(ATTEMPTS)
        .where(ATTEMPTS.c.id == attempt.id)
        .values(
            state=state.value,
            ended_ns=now,
            cause=None if cause is None else cause.value,
            error=records.storable(error),
            warnings=records.to_json(list(warnings), f"attempt {attempt.id!r}", "warnings"),
        )
    )
    (rollout,) = get_rollouts(connection, [attempt.rollout_id])
    reason: str | None = None
    if state is AttemptState.SUCCEEDED:
        becomes = RolloutState.SUCCEEDED
    elif state is AttemptState.CANCELLED:
        becomes = RolloutState.QUEUED if retry else RolloutState.CANCELLED
        reason = None if retry else _what_happened(attempt, "was given up", error)
    else:
        assert cause is not None  # noqa: S101 - finish() gives every failure a cause
        becomes = RolloutState.QUEUED if retry and _attempts_left(connection, rollout) else RolloutState.DEAD
        if becomes is RolloutState.DEAD:
            reason = _what_happened(attempt, _WHY[cause].format(rollout=rollout), error)
            if retry:
                reason += f" That was the last of {rollout.max_attempts} allowed attempts."
    connection.execute(
        update(ROLLOUTS)
        .where(ROLLOUTS.c.id == rollout.id)
        .values(state=becomes.value, reason=records.storable(reason), finished_ns=now if becomes.terminal else None)
    )
    if becomes.terminal:
        transaction.ended.add(rollout.id)
    else:
        transaction.queued = True
    return get_rollouts(connection, [rollout.id])[0]


_WHY = {
    FailureCause.ERROR: "failed",
    FailureCause.DEADLINE: "ran longer than its deadline of {rollout.deadline_seconds} s",
    FailureCause.LEASE_EXPIRED: "was lost with its worker",
    FailureCause.BAD_REWARD: "gave no valid reward",
}


def _what_happened(attempt: Attempt, why: str, error: str | None) -> str:
    first_line = next((line.strip() for line in (error or "").splitlines() if line.strip()), "")
    return f"Attempt {attempt.number} {why}{': ' + first_line if first_line else ''}."


def _attempts_left(connection: Connection, rollout: Rollout) -> bool:
    # An attempt that was given back unharmed does not count.
    failed = select(func.count()).where(
        ATTEMPTS.c.rollout_id == rollout.id, ATTEMPTS.c.state == AttemptState.FAILED.value
    )
    return int(connection.execute(failed).scalar_one()) < rollout.max_attempts


def _raise_for_missing(kind: str, ids: Sequence[str], found: Any) -> None:
    missing = list(dict.fromkeys(id_ for id_ in ids if id_ not in found))
    if missing:
        names = ", ".join(repr(id_) for id_ in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise NotFoundError(f"no {kind} {names}{more} in this store. Add it first, or check the id.")


def _raise_for_unpublished(connection: Connection, rollouts: Sequence[Rollout]) -> None:
    pinned = {(name, version) for rollout in rollouts for name, version in rollout.resources.items()}
    if not pinned:
        return
    versions = select(RESOURCES.c.name, RESOURCES.c.version)
    names = [name for name, _ in pinned]
    published = {(row.name, row.version) for row in rows_in(connection, versions, RESOURCES.c.name, names)}
    missing = sorted(pinned - published)
    if missing:
        raise NotFoundError(
            "rollouts are pinned to resources that were never published: "
            + ", ".join(f"{name} version {version}" for name, version in missing[:10])
            + ". Publish them first. Nothing was queued."
        )


def checked_end(state: AttemptState) -> AttemptState:
    """The state, if an attempt can end in it.

    Raises:
        StoreError: it is ``running``.
    """
    if state is AttemptState.RUNNING:
        raise StoreError("finish: an attempt cannot end as 'running'; say succeeded, failed or cancelled.")
    return state
