"""Tasks and the queue: how rollouts are queued, leased, ended, taken back and withdrawn.

Each function does its work inside a transaction that somebody else begins and commits. All changes of a rollout's or
an attempt's state are in this file.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, literal_column, select, update

from coterie.errors import LeaseLostError, NotFoundError, StoreError
from coterie.store import records
from coterie.store.base import Page, attempt_id_of
from coterie.store.executing import VALUES, change, change_each, fetch, first
from coterie.store.locks import (
    is_postgresql,
    lock_attempts,
    lock_name,
    lock_rollouts,
    lock_rollouts_of,
    lock_running_attempts_at,
)
from coterie.store.statements import grouped, in_portions, insert_new, one_of, page, replace, rows_in
from coterie.store.tables import ATTEMPTS, RESOURCES, REWARDS, ROLLOUTS, SPANS, TASKS
from coterie.store.traces import add_rewards, add_spans, delete_spans
from coterie.store.writer import Transaction
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    FailureCause,
    Lease,
    RetryPolicy,
    Rollout,
    RolloutState,
    Task,
    new_id,
)

RowValues = Mapping[str, Any]

EXPIRIES_AT_ONCE = 500
"""Leases that one transaction declares run out; the next one goes on. Others wait for it meanwhile."""


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
    """Take queued rollouts, oldest first, after doing what time has brought."""
    connection = transaction.connection
    if request_id is not None:
        lock_name(connection, f"lease {request_id}")
    catch_up(transaction, now)
    before = [] if request_id is None else _attempts_of_request(connection, request_id)
    if any(attempt.state is not AttemptState.CANCELLED for attempt in before):
        return _held(connection, worker, before)
    queued = _QUEUED if run_id is None else _QUEUED_OF_RUN
    taken = fetch(connection, queued, {"run_id": run_id, "limit": limit})
    if not taken:
        return []
    ids = None if request_id is None else [attempt_id_of(request_id, len(before) + at) for at in range(len(taken))]
    return _taken(connection, taken, worker, lease_ns=lease_ns, now=now, attempt_ids=ids)


def begin(transaction: Transaction, rollout: Rollout, row: RowValues, worker: str, *, lease_ns: int, now: int) -> Lease:
    """Add a rollout and take it, without its ever being in the queue for others."""
    connection = transaction.connection
    (task,) = get_tasks(connection, [rollout.task_id])
    _raise_for_unpublished(connection, [rollout])
    if insert_new(connection, ROLLOUTS, [row]):
        (queued,) = fetch(connection, _NEW, {"rollout_id": rollout.id})
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
    lock_attempts(transaction.connection, attempt_ids)
    for some in in_portions(attempt_ids):
        given = {VALUES: some, "expires_ns": now + lease_ns, "now": now}
        held.update(row.id for row in fetch(transaction.connection, _PROLONG, given))
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
    lock_rollouts_of(connection, [attempt_id])
    row = first(connection, _ATTEMPT, {"attempt_id": attempt_id})
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
    lock_rollouts_of(transaction.connection, attempt_ids)
    for row in list(rows_in(transaction.connection, _RUNNING_AMONG, attempt_ids)):
        error = "the worker went away before it began"
        _end(transaction, records.attempt_of(row), AttemptState.CANCELLED, None, error=error, now=now)


def catch_up(transaction: Transaction, now: int) -> None:
    """Do what time has brought: end attempts whose lease ran out, and queue rollouts whose time has come."""
    connection = transaction.connection
    times = fetch(connection, _NEXT_TIMES)[0]
    if times.expiry is not None and times.expiry <= now:
        for row in fetch(connection, _OVERDUE, {"now": now}):
            attempt = records.attempt_of(row)
            error = f"worker {attempt.worker!r} sent no heartbeat before its lease ran out"
            _end(transaction, attempt, AttemptState.FAILED, FailureCause.LEASE_EXPIRED, error=error, now=now)
    if times.available is not None and times.available <= now:
        change(connection, _QUEUE_AVAILABLE, {"now": now})
        transaction.queued = True


def next_time(connection: Connection) -> int | None:
    """When time brings the next thing: a lease runs out, or a rollout becomes available. None when nothing is due."""
    times = [time for time in fetch(connection, _NEXT_TIMES)[0] if time is not None]
    return min(times, default=None)


def count_anew(transaction: Transaction, now: int) -> None:
    """Call it when the clock may have gone back: what seems to have begun in the future begins now.

    Leases are counted from now in full, and so are delays that follow a failed attempt. A time that somebody gave
    (``Rollout.available_ns``) stays, and if it had come, it comes again.
    """
    connection = transaction.connection
    change(connection, _COUNT_LEASES_ANEW, {"now": now})
    change(connection, _PUT_OFF_AGAIN, {"now": now})
    for row in fetch(connection, _PUT_OFF_IN_THE_FUTURE, {"now": now}):
        rollout = records.rollout_of(row)
        failed = _failures(get_attempts(connection, [rollout.id])[rollout.id])
        available_ns = now + _delay_ns(rollout.retry, sum(failed.values()))
        if available_ns < row.available_ns:
            change(connection, _SET_AVAILABLE, {"rollout_id": rollout.id, "available_ns": available_ns})


def cancel(transaction: Transaction, rollout_ids: Sequence[str], *, reason: str, now: int) -> None:
    """Withdraw rollouts that have not ended, with their running attempts."""
    connection = transaction.connection
    lock_rollouts(connection, rollout_ids)
    rollouts = get_rollouts(connection, rollout_ids)
    open_ids = [rollout.id for rollout in rollouts if not rollout.state.terminal]
    lock_running_attempts_at(connection, open_ids)
    for some in in_portions(open_ids):
        connection.execute(
            update(ATTEMPTS)
            .where(ATTEMPTS.c.rollout_id.in_(some), ATTEMPTS.c.state == AttemptState.RUNNING.value)
            .values(state=AttemptState.CANCELLED.value, ended_ns=now)
        )
        connection.execute(
            update(ROLLOUTS)
            .where(ROLLOUTS.c.id.in_(some))
            .values(
                state=RolloutState.CANCELLED.value,
                reason=records.storable(reason),
                available_ns=None,
                finished_ns=now,
            )
        )
    transaction.ended.update(open_ids)


def requeue(transaction: Transaction, rollout_ids: Sequence[str], *, attempts: int) -> None:
    """Put dead and cancelled rollouts back into the queue with so many more attempts."""
    connection = transaction.connection
    lock_rollouts(connection, rollout_ids)
    rollouts = {rollout.id: rollout for rollout in get_rollouts(connection, rollout_ids)}
    done = [rollout.id for rollout in rollouts.values() if rollout.state is RolloutState.SUCCEEDED]
    if done:
        raise StoreError(
            f"requeue: {_named(done)} succeeded already; only dead or cancelled rollouts go back to the queue. "
            "To make it again, queue a new rollout. Nothing was changed."
        )
    again = [rollout for rollout in rollouts.values() if rollout.state.terminal]
    if not again:
        return
    tried = get_attempts(connection, [rollout.id for rollout in again])
    rows = []
    for rollout in again:
        failed = _failures(tried[rollout.id])
        limits = {
            cause: failed[cause] + attempts if failed.get(cause, 0) >= limit else limit
            for cause, limit in rollout.retry.by_cause.items()
        }
        retry = dataclasses.replace(rollout.retry, by_cause=limits)
        rows.append(
            {
                "rollout_id": rollout.id,
                "max_attempts": sum(failed.values()) + attempts,
                "retry": records.retry_text(retry, f"rollout {rollout.id!r}"),
            }
        )
    change_each(connection, _REQUEUE, rows)
    transaction.queued = True


def delete_rollouts(transaction: Transaction, rollout_ids: Iterable[str]) -> dict[str, int]:
    """Remove ended rollouts with all that belongs to them; gives the number of rows by table."""
    connection = transaction.connection
    ids = list(rollout_ids)
    lock_rollouts(connection, ids, to_delete=True)
    states = {row.id: records.rollout_state(row.state) for row in rows_in(connection, _ROLLOUT_STATES, ids)}
    going_on = [id_ for id_, state in states.items() if not state.terminal]
    if going_on:
        raise StoreError(f"{_named(going_on)} has not ended; cancel it before it is removed. Nothing was removed.")
    counts = dict.fromkeys(("rollouts", "attempts", "spans", "rewards"), 0)
    for some in in_portions(states):
        attempt_ids = [row.id for row in fetch(connection, _ATTEMPT_IDS, {VALUES: some})]
        counts["spans"] += delete_spans(transaction, SPANS.c.attempt_id, attempt_ids)
        counts["spans"] += delete_spans(transaction, SPANS.c.rollout_id, some)
        for table, statement in _DELETE_OF_ROLLOUTS.items():
            counts[table] += change(connection, statement, {VALUES: some})
    return counts


def get_rollouts(connection: Connection, ids: Sequence[str]) -> tuple[Rollout, ...]:
    """The rollouts of these ids, in this order."""
    found = {row.id: records.rollout_of(row) for row in rows_in(connection, _ROLLOUTS, ids)}
    _raise_for_missing("rollout", ids, found)
    return tuple(found[id_] for id_ in ids)


def list_rollouts(connection: Connection, filters: Mapping[str, Any], after: str | None, limit: int) -> Page[Rollout]:
    """A page of rollouts in the order in which they were queued."""
    states = [filters.get("state")]
    if states == [RolloutState.QUEUED]:
        states.append(records.DELAYED)
    pages = [
        page(
            connection,
            ROLLOUTS,
            {**filters, "state": state},
            key=ROLLOUTS.c.seq,
            after=after,
            limit=limit,
            item_of=_place_and_rollout,
        )
        for state in states
    ]
    # What lies behind the end of one page is not complete yet.
    ends = [int(one.cursor) for one in pages if one.cursor is not None]
    placed = sorted((entry for one in pages for entry in one.items), key=lambda entry: entry[0])
    complete = [entry for entry in placed if not ends or entry[0] <= min(ends)]
    more = bool(ends) or len(complete) > limit
    complete = complete[:limit]
    return Page(tuple(rollout for _, rollout in complete), str(complete[-1][0]) if more else None)


def open_rollouts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of these rollouts that have not ended."""
    states = {row.id: records.rollout_state(row.state) for row in rows_in(connection, _ROLLOUT_STATES, ids)}
    _raise_for_missing("rollout", ids, states)
    return {id_ for id_, state in states.items() if not state.terminal}


def get_attempts(connection: Connection, rollout_ids: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """The attempts of each rollout, first to last."""
    return grouped(connection, _ATTEMPTS_OF_ROLLOUTS, ATTEMPTS.c.rollout_id, rollout_ids, records.attempt_of)


def list_attempts(connection: Connection, after: str | None, limit: int) -> Page[Attempt]:
    """A page of attempts by id."""
    return page(connection, ATTEMPTS, {}, key=ATTEMPTS.c.id, after=after, limit=limit, item_of=records.attempt_of)


def _attempts_of_request(connection: Connection, request_id: str) -> list[Attempt]:
    """What this request was given when it came before."""
    attempts: list[Attempt] = []
    while row := first(connection, _ATTEMPT, {"attempt_id": attempt_id_of(request_id, len(attempts))}):
        attempts.append(records.attempt_of(row))
    return attempts


def _held(connection: Connection, worker: str, attempts: Sequence[Attempt]) -> list[Lease]:
    """The leases of those of these attempts that this worker still holds."""
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
    attempt_ids: Sequence[str] | None = None,
) -> list[Lease]:
    """Begin an attempt at each of these queued rollouts."""
    tasks = get_tasks(connection, [row.task_id for row in queued])
    numbers = _last_numbers(connection, queued)
    leases = [
        Lease(
            attempt=Attempt(
                id=new_id("at") if attempt_ids is None else attempt_ids[index],
                rollout_id=row.id,
                number=numbers[row.id] + 1,
                worker=worker,
                state=AttemptState.RUNNING,
                started_ns=now,
                lease_expires_ns=now + lease_ns,
            ),
            rollout=dataclasses.replace(records.rollout_of(row), state=RolloutState.RUNNING, available_ns=None),
            task=task,
        )
        for index, (row, task) in enumerate(zip(queued, tasks, strict=True))
    ]
    change_each(connection, _ADD_ATTEMPT, [records.attempt_row(lease.attempt) for lease in leases])
    change_each(connection, _SET_RUNNING, [{"rollout_id": row.id} for row in queued])
    return leases


def _last_numbers(connection: Connection, queued: Sequence[Any]) -> Mapping[str, int]:
    """The number of the last attempt at each of these rollouts, 0 if there is none."""
    numbers = {row.id: row.last_number or 0 for row in queued}
    if is_postgresql(connection):
        # The statement that took the rows began before they were held; what others did in between it did not see.
        numbers.update({row[0]: row[1] for row in fetch(connection, _LAST_NUMBERS, {VALUES: list(numbers)})})
    return numbers


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
    change(
        connection,
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
    available_ns: int | None = None
    if state is AttemptState.SUCCEEDED:
        becomes = RolloutState.SUCCEEDED
    elif state is AttemptState.CANCELLED:
        becomes = RolloutState.QUEUED if retry else RolloutState.CANCELLED
        reason = None if retry else _what_happened(attempt, "was given up", error)
    else:
        assert cause is not None
        failed = _failures(get_attempts(connection, [rollout.id])[rollout.id])
        limit = _limit_hit(rollout, failed, cause) if retry else ""
        if limit is None:
            becomes = RolloutState.QUEUED
            delay_ns = _delay_ns(rollout.retry, sum(failed.values()))
            available_ns = now + delay_ns if delay_ns else None
        else:
            becomes = RolloutState.DEAD
            reason = _what_happened(attempt, _WHY[cause], error) + limit
    ended = dataclasses.replace(
        rollout,
        state=becomes,
        reason=records.storable(reason),
        available_ns=available_ns,
        finished_ns=now if becomes.terminal else None,
    )
    change(
        connection,
        _SET_STATE,
        {
            "rollout_id": ended.id,
            "state": records.queued_state(ended) if becomes is RolloutState.QUEUED else becomes.value,
            "reason": ended.reason,
            "available_ns": available_ns,
            "finished_ns": ended.finished_ns,
        },
    )
    if becomes.terminal:
        transaction.ended.add(rollout.id)
    else:
        transaction.queued = True
    return ended


_WHY = {
    FailureCause.ERROR: "failed",
    FailureCause.DEADLINE: "ran longer than its deadline",
    FailureCause.LEASE_EXPIRED: "was lost with its worker",
    FailureCause.BAD_REWARD: "gave no valid reward",
}


def _what_happened(attempt: Attempt, why: str, error: str | None) -> str:
    first_line = next((line.strip() for line in (error or "").splitlines() if line.strip()), "")
    return f"Attempt {attempt.number} {why}{': ' + first_line if first_line else ''}."


def _failures(attempts: Iterable[Attempt]) -> Mapping[FailureCause | None, int]:
    """How many attempts failed, by cause. One that was given back unharmed did not fail."""
    return Counter(attempt.cause for attempt in attempts if attempt.state is AttemptState.FAILED)


def _limit_hit(rollout: Rollout, failed: Mapping[FailureCause | None, int], cause: FailureCause) -> str | None:
    """The sentence that says which limit was hit by the last failure, or None if another attempt is allowed."""
    of_cause = rollout.retry.by_cause.get(cause)
    if of_cause is not None and failed[cause] >= of_cause:
        return f" Its retry policy allows {_times(of_cause)} to end as {cause}, and this was the last."
    if sum(failed.values()) >= rollout.max_attempts:
        return f" That was the last of {rollout.max_attempts} allowed attempts."
    return None


def _delay_ns(retry: RetryPolicy, failed: int) -> int:
    """How long a rollout is put off after so many failed attempts, in nanoseconds."""
    try:
        seconds = min(retry.delay_seconds * float(retry.backoff) ** (failed - 1), retry.max_delay_seconds)
    except OverflowError:
        seconds = retry.max_delay_seconds if retry.delay_seconds else 0.0
    return int(seconds * 1e9)


def _times(number: int) -> str:
    return "1 attempt" if number == 1 else f"{number} attempts"


def _named(ids: Sequence[str]) -> str:
    return f"rollout {ids[0]!r}" + (f" (like {len(ids) - 1} more)" if len(ids) > 1 else "")


def _place_and_rollout(row: Any) -> tuple[int, Rollout]:
    return row.seq, records.rollout_of(row)


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


def _not_held(key: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition that a row fulfils these and that no other transaction holds it."""
    return key.in_(select(key).where(*conditions).with_for_update(key_share=True, skip_locked=True))


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
# Written out, because of a parameter SQLite would ask each time anew whether the index of the delayed ones fits.
_IS_QUEUED = ROLLOUTS.c.state == literal_column(f"'{RolloutState.QUEUED}'")
_QUEUED = (
    select(ROLLOUTS, _LAST_NUMBER)
    .where(_IS_QUEUED)
    .order_by(ROLLOUTS.c.seq)
    .limit(bindparam("limit"))
    .with_for_update(key_share=True, skip_locked=True, of=ROLLOUTS)
)
_QUEUED_OF_RUN = _QUEUED.where(ROLLOUTS.c.run_id == bindparam("run_id"))
_NEW = select(ROLLOUTS, _LAST_NUMBER).where(_OF_ROLLOUT)
_LAST_NUMBERS = (
    select(ATTEMPTS.c.rollout_id, func.max(ATTEMPTS.c.number))
    .where(one_of(ATTEMPTS.c.rollout_id))
    .group_by(ATTEMPTS.c.rollout_id)
)
_SET_RUNNING = update(ROLLOUTS).where(_OF_ROLLOUT).values(state=RolloutState.RUNNING.value, available_ns=None)
_SET_STATE = (
    update(ROLLOUTS)
    .where(_OF_ROLLOUT)
    .values(
        state=bindparam("state"),
        reason=bindparam("reason"),
        available_ns=bindparam("available_ns"),
        finished_ns=bindparam("finished_ns"),
    )
)
_REQUEUE = (
    update(ROLLOUTS)
    .where(_OF_ROLLOUT)
    .values(
        state=RolloutState.QUEUED.value,
        reason=None,
        available_ns=None,
        finished_ns=None,
        max_attempts=bindparam("max_attempts"),
        retry=bindparam("retry"),
    )
)

_ADD_ATTEMPT = ATTEMPTS.insert()
_ATTEMPT = select(ATTEMPTS).where(_OF_ATTEMPT)
_ATTEMPTS_OF_ROLLOUTS = select(ATTEMPTS).where(one_of(ATTEMPTS.c.rollout_id)).order_by(ATTEMPTS.c.number)
_RUNNING_AMONG = select(ATTEMPTS).where(_IS_RUNNING, one_of(ATTEMPTS.c.id))
_OVERDUE = (
    select(ATTEMPTS)
    .join(ROLLOUTS, ROLLOUTS.c.id == ATTEMPTS.c.rollout_id)
    .where(_IS_RUNNING, ATTEMPTS.c.lease_expires_ns <= bindparam("now"))
    .order_by(ATTEMPTS.c.lease_expires_ns)
    .limit(EXPIRIES_AT_ONCE)
    .with_for_update(key_share=True, skip_locked=True, of=[ROLLOUTS, ATTEMPTS])
)
# Written out, because SQLite uses the index of the delayed ones only when it can read that they are asked for.
_IS_DELAYED = ROLLOUTS.c.state == literal_column(f"'{records.DELAYED}'")
_NEXT_TIMES = select(
    select(func.min(ATTEMPTS.c.lease_expires_ns)).where(_IS_RUNNING).scalar_subquery().label("expiry"),
    select(func.min(ROLLOUTS.c.available_ns)).where(_IS_DELAYED).scalar_subquery().label("available"),
)
_QUEUE_AVAILABLE = (
    update(ROLLOUTS)
    .where(_not_held(ROLLOUTS.c.seq, _IS_DELAYED, ROLLOUTS.c.available_ns <= bindparam("now")))
    .values(state=RolloutState.QUEUED.value)
)
_COUNT_LEASES_ANEW = (
    update(ATTEMPTS)
    .where(_not_held(ATTEMPTS.c.id, _IS_RUNNING, ATTEMPTS.c.renewed_ns > bindparam("now")))
    .values(
        lease_expires_ns=ATTEMPTS.c.lease_expires_ns - ATTEMPTS.c.renewed_ns + bindparam("now"),
        renewed_ns=bindparam("now"),
    )
)
_PUT_OFF_AGAIN = (
    update(ROLLOUTS)
    .where(
        _not_held(
            ROLLOUTS.c.seq, ROLLOUTS.c.state == RolloutState.QUEUED.value, ROLLOUTS.c.available_ns > bindparam("now")
        )
    )
    .values(state=records.DELAYED)
)
_PUT_OFF_IN_THE_FUTURE = (
    select(ROLLOUTS)
    .where(
        _IS_DELAYED,
        select(ATTEMPTS.c.id)
        .where(
            # Only a failed one has a cause. By its state SQLite would go through the failed attempts of all rollouts.
            ATTEMPTS.c.rollout_id == ROLLOUTS.c.id,
            ATTEMPTS.c.cause.is_not(None),
            ATTEMPTS.c.ended_ns > bindparam("now"),
        )
        .exists(),
    )
    .with_for_update(key_share=True, skip_locked=True, of=ROLLOUTS)
)
_SET_AVAILABLE = update(ROLLOUTS).where(_OF_ROLLOUT).values(available_ns=bindparam("available_ns"))
_PROLONG = (
    update(ATTEMPTS)
    .where(_IS_RUNNING, one_of(ATTEMPTS.c.id))
    .values(lease_expires_ns=bindparam("expires_ns"), renewed_ns=bindparam("now"))
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
_ATTEMPT_IDS = select(ATTEMPTS.c.id).where(one_of(ATTEMPTS.c.rollout_id))
# In the order in which the rows depend on each other.
_DELETE_OF_ROLLOUTS = {
    "rewards": delete(REWARDS).where(one_of(REWARDS.c.rollout_id)),
    "attempts": delete(ATTEMPTS).where(one_of(ATTEMPTS.c.rollout_id)),
    "rollouts": delete(ROLLOUTS).where(one_of(ROLLOUTS.c.id)),
}
