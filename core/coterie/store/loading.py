"""Records of another store, added as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, select

from coterie.errors import NotFoundError, StoreError
from coterie.store import records
from coterie.store.locks import lock_rollouts
from coterie.store.resources import lock_resources, retire_all_but_the_last_active
from coterie.store.statements import insert_new, one_of, rows_in
from coterie.store.tables import (
    ATTEMPTS,
    DECISIONS,
    METRICS,
    RESOURCES,
    REWARDS,
    ROLLOUTS,
    RUNS,
    SPANS,
    TASKS,
)
from coterie.store.traces import add_rewards, add_spans
from coterie.store.transfer import Records
from coterie.store.writer import Transaction
from coterie.vocabulary import AttemptState, RolloutState

RowValues = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of some records, by table, in the order in which they depend on each other."""

    of: Mapping[Table, Sequence[RowValues]]


def rows_of(given: Records) -> Rows:
    """The rows of records.

    Raises:
        StoreError: a record cannot be stored; says which and why.
        RewardError: a reward is no finite number.
    """
    for resource in given.resources:
        if resource.version < 1:
            raise StoreError(
                f"load: resource {resource.name!r} has no version. Publish it, or give the version that it had. "
                "Nothing was added."
            )
    return Rows(
        {
            TASKS: [records.task_row(task) for task in given.tasks],
            RESOURCES: [records.resource_row(resource) for resource in given.resources],
            RUNS: [records.run_row(run) for run in given.runs],
            METRICS: [records.metrics_row(metrics) for metrics in given.metrics],
            DECISIONS: [records.decision_row(decision) for decision in given.decisions],
            ROLLOUTS: [records.kept_rollout_row(rollout) for rollout in given.rollouts],
            ATTEMPTS: [records.attempt_row(attempt) for attempt in given.attempts],
            SPANS: [records.span_row(span) for span in given.spans],
            REWARDS: [records.reward_row(reward) for reward in given.rewards],
        }
    )


def load(transaction: Transaction, rows: Rows) -> None:
    """Add the rows that are new."""
    connection = transaction.connection
    given = rows.of
    names = [row["name"] for row in given[RESOURCES]]
    lock_resources(connection, names)
    _raise_for_other_kinds(connection, given[RESOURCES])
    for table in (TASKS, RESOURCES, RUNS, METRICS, DECISIONS):
        insert_new(connection, table, given[table])
    retire_all_but_the_last_active(connection, names)
    _raise_for_missing(connection, given[ROLLOUTS], "task_id", TASKS)
    insert_new(connection, ROLLOUTS, given[ROLLOUTS])
    lock_rollouts(connection, {row["rollout_id"] for row in given[ATTEMPTS]})
    _raise_for_missing(connection, given[ATTEMPTS], "rollout_id", ROLLOUTS)
    insert_new(connection, ATTEMPTS, given[ATTEMPTS])
    _raise_for_other_attempts(connection, given[ATTEMPTS])
    _raise_for_half_running(connection, given[ROLLOUTS], given[ATTEMPTS])
    add_spans(transaction, given[SPANS])
    add_rewards(transaction, given[REWARDS])
    transaction.queued = bool(given[ROLLOUTS] or given[ATTEMPTS])


def _raise_for_missing(connection: Connection, rows: Sequence[RowValues], column: str, table: Table) -> None:
    """Every row must name a row that the other table has by now."""
    wanted = {row[column] for row in rows}
    found = {row.id for row in rows_in(connection, select(table.c.id).where(one_of(table.c.id)), wanted)}
    missing = sorted(wanted - found)
    if missing:
        kind = table.name.removesuffix("s")
        row = next(row for row in rows if row[column] == missing[0])
        raise NotFoundError(
            f"load: {row['id']!r} belongs to {kind} {missing[0]!r}, which neither the records nor this store have"
            f"{f', like {len(missing) - 1} more' if len(missing) > 1 else ''}. Load those as well. Nothing was added."
        )


def _raise_for_other_kinds(connection: Connection, rows: Sequence[RowValues]) -> None:
    statement = select(RESOURCES.c.name, RESOURCES.c.kind).where(one_of(RESOURCES.c.name)).distinct()
    kinds = {row.name: row.kind for row in rows_in(connection, statement, [row["name"] for row in rows])}
    for row in rows:
        if kinds.setdefault(row["name"], row["kind"]) != row["kind"]:
            raise StoreError(
                f"load: resource {row['name']!r} is a {kinds[row['name']]}; it cannot get a version of kind "
                f"{row['kind']}. Nothing was added."
            )


def _raise_for_other_attempts(connection: Connection, rows: Sequence[RowValues]) -> None:
    """An attempt whose number another one has was not inserted, and must not be lost silently."""
    statement = select(ATTEMPTS.c.id, ATTEMPTS.c.rollout_id).where(one_of(ATTEMPTS.c.id))
    rollout_of = {row.id: row.rollout_id for row in rows_in(connection, statement, [row["id"] for row in rows])}
    for row in rows:
        if row["id"] not in rollout_of:
            raise StoreError(
                f"load: attempt {row['id']!r} is number {row['number']} of rollout {row['rollout_id']!r}, but this "
                "store has another attempt of that number: the rollout went on here. Nothing was added."
            )


def _raise_for_half_running(
    connection: Connection, rollouts: Iterable[RowValues], attempts: Iterable[RowValues]
) -> None:
    """A rollout runs exactly when one attempt at it runs: else nobody would ever end it, or somebody would twice."""
    ids = [row["id"] for row in rollouts] + [row["rollout_id"] for row in attempts]
    runs = {
        row.id: row.state == RolloutState.RUNNING.value
        for row in rows_in(connection, select(ROLLOUTS.c.id, ROLLOUTS.c.state).where(one_of(ROLLOUTS.c.id)), ids)
    }
    statement = select(ATTEMPTS.c.rollout_id).where(
        ATTEMPTS.c.state == AttemptState.RUNNING.value, one_of(ATTEMPTS.c.rollout_id)
    )
    running = Counter(row.rollout_id for row in rows_in(connection, statement, ids))
    for id_, should in runs.items():
        if running[id_] != int(should):
            raise StoreError(
                f"load: rollout {id_!r} is {'running' if should else 'not running'}, with {running[id_]} running "
                "attempts. Load a running rollout together with its running attempt. Nothing was added."
            )
