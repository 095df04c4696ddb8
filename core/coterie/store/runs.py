"""Runs with their metrics and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from coterie.errors import NotFoundError
from coterie.store import records
from coterie.store.base import Page
from coterie.store.statements import insert_new, page, replace
from coterie.store.tables import DECISIONS, METRICS, RUNS
from coterie.store.writer import Transaction
from coterie.vocabulary import Decision, Metrics, Run, RunState

RowValues = Mapping[str, Any]


def save_run(transaction: Transaction, row: RowValues) -> None:
    """Add or replace a run."""
    replace(transaction.connection, RUNS, ["id"], [row])


def get_run(connection: Connection, run_id: str) -> Run:
    """The run of this id."""
    row = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).first()
    if row is not None:
        return records.run_of(row)
    newest = connection.execute(select(RUNS.c.id, RUNS.c.name).order_by(RUNS.c.seq.desc()).limit(5)).all()
    there_are = (
        "the newest ones are " + ", ".join(f"{run.id!r} ({run.name})" for run in newest)
        if newest
        else "there are none yet"
    )
    raise NotFoundError(f"no run {run_id!r} in this store; {there_are}.")


def list_runs(connection: Connection, state: RunState | None, after: str | None, limit: int) -> Page[Run]:
    """A page of runs, newest first."""
    filters = {"state": None if state is None else state.value}
    return page(
        connection,
        RUNS,
        filters,
        key=RUNS.c.seq,
        after=after,
        limit=limit,
        item_of=records.run_of,
        newest_first=True,
    )


def add_metrics(transaction: Transaction, rows: Sequence[RowValues]) -> None:
    """Add or replace figures of steps."""
    replace(transaction.connection, METRICS, ["run_id", "step", "stage"], rows)


def get_metrics(connection: Connection, run_id: str, stage: str | None) -> tuple[Metrics, ...]:
    """A run's figures by step."""
    statement = select(METRICS).where(METRICS.c.run_id == run_id)
    if stage is not None:
        statement = statement.where(METRICS.c.stage == stage)
    rows = connection.execute(statement.order_by(METRICS.c.step, METRICS.c.time_ns, METRICS.c.stage))
    return tuple(records.metrics_of(row) for row in rows)


def add_decision(transaction: Transaction, row: RowValues) -> None:
    """Add an audit entry if it is new."""
    insert_new(transaction.connection, DECISIONS, [row])


def get_decisions(connection: Connection, run_id: str) -> tuple[Decision, ...]:
    """A run's audit entries in order of time."""
    statement = select(DECISIONS).where(DECISIONS.c.run_id == run_id)
    rows = connection.execute(statement.order_by(DECISIONS.c.time_ns, DECISIONS.c.seq))
    return tuple(records.decision_of(row) for row in rows)


def list_decisions(connection: Connection, run_id: str | None, after: str | None, limit: int) -> Page[Decision]:
    """A page of audit entries in the order in which they arrived."""
    filters = {"run_id": run_id}
    return page(
        connection, DECISIONS, filters, key=DECISIONS.c.seq, after=after, limit=limit, item_of=records.decision_of
    )
