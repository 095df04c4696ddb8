"""Tasks and the queue: how rollouts are queued, leased, ended, taken back and withdrawn.

Each function does its work inside a transaction that somebody else begins and commits. All changes of a rollout's or
an attempt's state are in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from coterie.errors import LeaseLostError, NotFoundError, StoreError
from coterie.store import records
from coterie.store.base import Page, attempt_id_of
from coterie.store.statements import grouped, in_portions, insert_new, one_of, page, replace, rows_in
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
    found = {row.id: records.task_of(row) for row in rows_in(connection, _TASKS, ids)}
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
    found = {row.id for row in rows_in(connection, _TASK_IDS, task_ids)}
    _raise_for_missing("task", task_ids, found)
    _raise_for_unpublished(connection, rollouts)
    if insert_new(connection, ROLLOUTS, rows):
        transaction.queued = True


def lease(
    transaction: Transaction,
    worker: str,
    *,
    limit: int,
    lease_ns: int,
    run_id: str | None,
    now: int,
    request_id: str | None = None,
) -> list[Lease]:
    """Take queued rollouts, oldest first, after returning leases that ran out."""
    connection = transaction.connection
    expire(transaction, now)
    if request_id is not None and (before := _leased_before(connection, worker, request_id)) is not None:
        return before
    queued = _QUEUED if run_id is None else _QUEUED_OF_RUN
    taken = connection.execute(queued, {"run_id": run_id, "limit": limit}).all()
    if not taken:
        return []
    return _taken(connection, taken, worker, lease_ns=lease_ns, now=now, request_id=request_id)


def begin(transaction: Transaction, rollout: Rollout, row: RowValues, worker: str, *, lease_ns: int, now: int) -> Lease:
    """Add a rollout and take it, without its ever being in the queue for others."""
    connection = transaction.connection
    (task,) = get_tasks(connection, [rollout.task_id])
    _raise_for_unpublished(connection, [rollout])
    if insert_new(connection, ROLLOUTS, [row]):
        (queued,) = connection.execute(_QUEUED_OF_ID, {"rollout_id": rollout.id, "limit": 1}).all()
        (lease,) = _taken(connection, [queued], worker, lease_ns=lease_ns, now=now)
        return lease
    attempts = get_attempts(connection, [rollout.id]).get(rollout.id, ())
    if not attempts or attempts[-1].state is not AttemptState.RUNNING or attempts[-1].worker != worker:
        raise StoreError(
            f"rollout {rollout.id!r} exists already and is not worker {worker!r}'s to begin. Give it an id of its own."
        )
    return Lease(attempts[-1], get_rollouts(connection, [rollout.id])[0], task)


def heartbeat(transaction: Transaction, attempt_ids: Sequence[str], *, lease_ns: int, now: int) -> frozenset[str]:
    """Prolong the leases of attempts that run still; gives their ids."""
    held: set[str] = set()
    for some in in_portions(attempt_ids):
        prolonged = transaction.connection.execute(_PROLONG, {"values": some, "expires_ns": now + lease_ns})
        held.update(prolonged.scalars())
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
    row = connection.execute(_ATTEMPT, {"attempt_id": attempt_id}).first()
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
    for row in list(rows_in(transaction.connection, _RUNNING_AMONG, attempt_ids)):
        error = "the worker went away before it began"
        _end(transaction, records.attempt_of(row), AttemptState.CANCELLED, None, error=error, now=now)


def expire(transaction: Transaction, now: int) -> None:
    """End the attempts whose lease ran out."""
    for row in transaction.connection.execute(_OVERDUE, {"now": now}).all():
        attempt = records.attempt_of(row)
        error = f"worker {attempt.worker!r} sent no heartbeat before its lease ran out"
        _end(transaction, attempt, AttemptState.FAILED, FailureCause.LEASE_EXPIRED, error=error, now=now)


def next_expiry(connection: Connection) -> int | None:
    """When the next lease runs out, or None when there is none."""
    expiry: int | None = connection.execute(_NEXT_EXPIRY).scalar()
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
    found = {row.id: records.rollout_of(row) for row in rows_in(connection, _ROLLOUTS, ids)}
    _raise_for_missing("rollout", ids, found)
    return tuple(found[id_] for id_ in ids)


def list_rollouts(connection: Connection, filters: Mapping[str, Any], after: str | None, limit: int) -> Page[Rollout]:
    """A page of rollouts in the order in which they were queued."""
    return page(connection, ROLLOUTS, filters, key=ROLLOUTS.c.seq, after=after, limit=limit, item_of=records.rollout_of)


def open_rollouts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of these rollouts that have not ended."""
    states = {row.id: RolloutState(row.state) for row in rows_in(connection, _ROLLOUT_STATES, ids)}
    _raise_for_missing("rollout", ids, states)
    return {id_ for id_, state in states.items() if not state.terminal}


def get_attempts(connection: Connection, rollout_ids: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """The attempts of each rollout, first to last."""
    return grouped(connection, _ATTEMPTS_OF_ROLLOUTS, ATTEMPTS.c.rollout_id, rollout_ids, records.attempt_of)


def _leased_before(connection: Connection, worker: str, request_id: str) -> list[Lease] | None:
    """What this request was given when it came the first time, as far as it is held; None if this is the first time."""
    attempts: list[Attempt] = []
    while row := connection.execute(_ATTEMPT, {"attempt_id": attempt_id_of(request_id, len(attempts))}).first():
        attempts.append(records.attempt_of(row))
    if not attempts:
        return None
    held = [attempt for attempt in attempts if attempt.state is AttemptState.RUNNING and attempt.worker == worker]
    rollouts = get_rollouts(connection, [attempt.rollout_id for attempt in held])
    tasks = get_tasks(connection, [rollout.task_id for rollout in rollouts])
    return [Lease(*parts) for parts in zip(held, rollouts, tasks, strict=True)]


def _taken(
    connection: Connection,
    queued: Sequence[Any],
    worker: str,
    *,
    lease_ns: int,
    now: int,
    request_id: str | None = None,
) -> list[Lease]:
    """Begin an attempt at each of these queued rollouts."""
    tasks = get_tasks(connection, [row.task_id for row in queued])
    leases = [
        Lease(
            attempt=Attempt(
                id=new_id("at") if request_id is None else attempt_id_of(request_id, index),
                rollout_id=row.id,
                number=(row.last_number or 0) + 1,
                worker=worker,
                state=AttemptState.RUNNING,
                started_ns=now,
                lease_expires_ns=now + lease_ns,
            ),
            rollout=dataclasses.replace(records.rollout_of(row), state=RolloutState.RUNNING),
            task=task,
        )
        for index, (row, task) in enumerate(zip(queued, tasks, strict=True))
    ]
    connection.execute(_ADD_ATTEMPT, [records.attempt_row(lease.attempt) for lease in leases])
    connection.execute(_SET_RUNNING, [{"rollout_id": row.id} for row in queued])
    return leases


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
        _END_ATTEMPT,
        {
            "attempt_id": attempt.id,
            "state": state.value,
            "ended_ns": now,
            "cause": None if cause is None else cause.value,
            "error": records.storable(error),
            "warnings": records.to_json(list(warnings), f"attempt {attempt.id!r}", "warnings"),
        },
    )
    (rollout,) = get_rollouts(connection, [attempt.rollout_id])
    reason: str | None = None
    if state is AttemptState.SUCCEEDED:
        becomes = RolloutState.SUCCEEDED
    elif state is AttemptState.CANCELLED:
        becomes = RolloutState.QUEUED if retry else RolloutState.CANCELLED
        reason = None if retry else _what_happened(attempt, "was given up", error)
    else:
        assert cause is not None
        becomes = RolloutState.QUEUED if retry and _attempts_left(connection, rollout) else RolloutState.DEAD
        if becomes is RolloutState.DEAD:
            reason = _what_happened(attempt, _WHY[cause], error)
            if retry:
                reason += f" That was the last of {rollout.max_attempts} allowed attempts."
    finished_ns = now if becomes.terminal else None
    reason = records.storable(reason)
    connection.execute(
        _SET_STATE,
        {"rollout_id": rollout.id, "state": becomes.value, "reason": reason, "finished_ns": finished_ns},
    )
    if becomes.terminal:
        transaction.ended.add(rollout.id)
    else:
        transaction.queued = True
    return dataclasses.replace(rollout, state=becomes, reason=reason, finished_ns=finished_ns)


_WHY = {
    FailureCause.ERROR: "failed",
    FailureCause.DEADLINE: "ran longer than its deadline",
    FailureCause.LEASE_EXPIRED: "was lost with its worker",
    FailureCause.BAD_REWARD: "gave no valid reward",
}


def _what_happened(attempt: Attempt, why: str, error: str | None) -> str:
    first_line = next((line.strip() for line in (error or "").splitlines() if line.strip()), "")
    return f"Attempt {attempt.number} {why}{': ' + first_line if first_line else ''}."


def _attempts_left(connection: Connection, rollout: Rollout) -> bool:
    # An attempt that was given back unharmed does not count.
    states: Sequence[str] = connection.execute(_STATES_OF_ATTEMPTS, {"rollout_id": rollout.id}).scalars().all()
    failed = states.count(AttemptState.FAILED.value)
    return failed < rollout.max_attempts


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
    names = [name for name, _ in pinned]
    published = {(row.name, row.version) for row in rows_in(connection, _VERSIONS, names)}
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


# Built once: building a statement costs more than running it.
_OF_ATTEMPT = ATTEMPTS.c.id == bindparam("attempt_id")
_OF_ROLLOUT = ROLLOUTS.c.id == bindparam("rollout_id")
_IS_RUNNING = ATTEMPTS.c.state == AttemptState.RUNNING.value

_TASKS = select(TASKS).where(one_of(TASKS.c.id))
_TASK_IDS = select(TASKS.c.id).where(one_of(TASKS.c.id))
_VERSIONS = select(RESOURCES.c.name, RESOURCES.c.version).where(one_of(RESOURCES.c.name))

_ROLLOUTS = select(ROLLOUTS).where(one_of(ROLLOUTS.c.id))
_ROLLOUT_STATES = select(ROLLOUTS.c.id, ROLLOUTS.c.state).where(one_of(ROLLOUTS.c.id))
_LAST_NUMBER = (
    select(func.max(ATTEMPTS.c.number))
    .where(ATTEMPTS.c.rollout_id == ROLLOUTS.c.id)
    .scalar_subquery()
    .label("last_number")
)
_QUEUED = (
    select(ROLLOUTS, _LAST_NUMBER)
    .where(ROLLOUTS.c.state == RolloutState.QUEUED.value)
    .order_by(ROLLOUTS.c.seq)
    .limit(bindparam("limit"))
)
_QUEUED_OF_RUN = _QUEUED.where(ROLLOUTS.c.run_id == bindparam("run_id"))
_QUEUED_OF_ID = _QUEUED.where(ROLLOUTS.c.id == bindparam("rollout_id"))
_SET_RUNNING = update(ROLLOUTS).where(_OF_ROLLOUT).values(state=RolloutState.RUNNING.value)
_SET_STATE = (
    update(ROLLOUTS)
    .where(_OF_ROLLOUT)
    .values(state=bindparam("state"), reason=bindparam("reason"), finished_ns=bindparam("finished_ns"))
)

_ADD_ATTEMPT = ATTEMPTS.insert()
_ATTEMPT = select(ATTEMPTS).where(_OF_ATTEMPT)
_ATTEMPTS_OF_ROLLOUTS = select(ATTEMPTS).where(one_of(ATTEMPTS.c.rollout_id)).order_by(ATTEMPTS.c.number)
_RUNNING_AMONG = select(ATTEMPTS).where(_IS_RUNNING, one_of(ATTEMPTS.c.id))
_OVERDUE = (
    select(ATTEMPTS)
    .where(_IS_RUNNING, ATTEMPTS.c.lease_expires_ns <= bindparam("now"))
    .order_by(ATTEMPTS.c.lease_expires_ns)
)
_NEXT_EXPIRY = select(func.min(ATTEMPTS.c.lease_expires_ns)).where(_IS_RUNNING)
# Counting by state in SQL would tempt SQLite to walk through the failed attempts of all rollouts.
_STATES_OF_ATTEMPTS = select(ATTEMPTS.c.state).where(ATTEMPTS.c.rollout_id == bindparam("rollout_id"))
_PROLONG = (
    update(ATTEMPTS)
    .where(_IS_RUNNING, one_of(ATTEMPTS.c.id))
    .values(lease_expires_ns=bindparam("expires_ns"))
    .returning(ATTEMPTS.c.id)
)
_END_ATTEMPT = (
    update(ATTEMPTS)
    .where(_OF_ATTEMPT)
    .values(
        state=bindparam("state"),
        ended_ns=bindparam("ended_ns"),
        cause=bindparam("cause"),
        error=bindparam("error"),
        warnings=bindparam("warnings"),
    )
)
