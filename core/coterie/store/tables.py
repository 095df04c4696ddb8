"""The tables of a SQL store, one class a table, with an index for every listing and for the order of leasing.

JSON lies in text columns, times are nanoseconds, states are the values of their enums. ``seq`` counts rows in the
order in which they arrived; cursors are made of it. The tables have a registry of their own, so that a program may
have its own SQLModel tables of the same names.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, UniqueConstraint, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from coterie.store.records import DELAYED

SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts rows by itself only in a column of exactly the type INTEGER."""


def _partial(name: str, *columns: str, where: str) -> Index:
    """An index of few rows: it costs the others nothing."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class StoreTable(SQLModel, registry=registry()):
    """Base of the store's tables."""


class TaskRow(StoreTable, table=True):
    """One task."""

    __tablename__ = "tasks"
    __table_args__ = (Index("ix_tasks_dataset", "dataset", "split", "id"), Index("ix_tasks_split", "split", "id"))

    id: str = Field(primary_key=True)
    input: str = Field(sa_type=Text)
    reference: str = Field(sa_type=Text)
    dataset: str
    split: str
    labels: str = Field(sa_type=Text)


class RolloutRow(StoreTable, table=True):
    """One rollout. Those in state ``queued`` are the queue, in the order of ``seq``; ``DELAYED`` ones will join it."""

    __tablename__ = "rollouts"
    __table_args__ = (
        UniqueConstraint("id", name="uq_rollouts_id"),
        Index("ix_rollouts_state", "state", "seq"),
        Index("ix_rollouts_run_state", "run_id", "state", "seq"),
        Index("ix_rollouts_run_step", "run_id", "step", "seq"),
        Index("ix_rollouts_run", "run_id", "seq"),
        Index("ix_rollouts_task", "task_id", "seq"),
        Index("ix_rollouts_mode", "mode", "seq"),
        _partial("ix_rollouts_group", "group_id", "seq", where="group_id IS NOT NULL"),
        _partial("ix_rollouts_delayed", "state", "available_ns", where=f"state = '{DELAYED}'"),
        _partial("ix_rollouts_finished", "finished_ns", "seq", where="finished_ns IS NOT NULL"),
    )

    seq: int | None = Field(default=None, sa_column=Column(SEQUENCE, primary_key=True))
    id: str
    task_id: str = Field(foreign_key="tasks.id")
    mode: str
    run_id: str | None
    group_id: str | None
    step: int | None
    resources: str = Field(sa_type=Text)
    sampling: str = Field(sa_type=Text)
    max_attempts: int
    deadline_seconds: float | None
    retry: str | None = Field(sa_type=Text)
    """None for the policy that a rollout has when it is given none."""
    available_ns: int | None = Field(sa_type=BigInteger)
    state: str
    reason: str | None = Field(sa_type=Text)
    created_ns: int = Field(sa_type=BigInteger)
    finished_ns: int | None = Field(sa_type=BigInteger)
    labels: str = Field(sa_type=Text)


class AttemptRow(StoreTable, table=True):
    """One attempt with its lease."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("rollout_id", "number", name="uq_attempts_number"),
        Index("ix_attempts_lease", "state", "lease_expires_ns"),
    )

    id: str = Field(primary_key=True)
    rollout_id: str = Field(foreign_key="rollouts.id")
    number: int
    worker: str
    state: str
    started_ns: int = Field(sa_type=BigInteger)
    lease_expires_ns: int = Field(sa_type=BigInteger)
    renewed_ns: int | None = Field(sa_type=BigInteger)
    """When the lease was last prolonged, at first when it was given."""
    ended_ns: int | None = Field(sa_type=BigInteger)
    cause: str | None
    error: str | None = Field(sa_type=Text)
    warnings: str = Field(sa_type=Text)


class SpanRow(StoreTable, table=True):
    """One span. It may belong to no attempt, or to one that another store keeps: there is no foreign key."""

    __tablename__ = "spans"
    __table_args__ = (
        UniqueConstraint("trace_id", "span_id", name="uq_spans_id"),
        Index("ix_spans_attempt", "attempt_id", "start_ns", "seq"),
        Index("ix_spans_rollout", "rollout_id", "seq"),
        Index("ix_spans_trace", "trace_id", "seq"),
        Index("ix_spans_start", "start_ns", "seq"),
    )

    seq: int | None = Field(default=None, sa_column=Column(SEQUENCE, primary_key=True))
    trace_id: str
    span_id: str
    name: str
    start_ns: int = Field(sa_type=BigInteger)
    end_ns: int = Field(sa_type=BigInteger)
    parent_id: str | None
    rollout_id: str | None
    attempt_id: str | None
    status: str
    status_message: str = Field(sa_type=Text)
    attributes: str = Field(sa_type=Text)
    events: str = Field(sa_type=Text)
    role: str | None
    """Like the next two taken from the attributes, for searches."""
    agent_path: str | None
    operation: str | None


class RewardRow(StoreTable, table=True):
    """One reward."""

    __tablename__ = "rewards"
    __table_args__ = (
        UniqueConstraint("id", name="uq_rewards_id"),
        Index("ix_rewards_attempt", "attempt_id", "time_ns", "seq"),
        Index("ix_rewards_rollout", "rollout_id", "seq"),
    )

    seq: int | None = Field(default=None, sa_column=Column(SEQUENCE, primary_key=True))
    id: str
    rollout_id: str = Field(foreign_key="rollouts.id")
    attempt_id: str = Field(foreign_key="attempts.id")
    value: float
    name: str
    source: str
    role: str | None
    agent_path: str | None
    call_id: str | None
    explanation: str | None = Field(sa_type=Text)
    time_ns: int = Field(sa_type=BigInteger)


class ResourceRow(StoreTable, table=True):
    """One version of a resource."""

    __tablename__ = "resources"
    __table_args__ = (_partial("ix_resources_active", "name", where="status = 'active'"),)

    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    kind: str
    content: str = Field(sa_type=Text)
    author: str
    parent: int | None
    note: str = Field(sa_type=Text)
    created_ns: int = Field(sa_type=BigInteger)
    status: str
    scores: str = Field(sa_type=Text)


class RunRow(StoreTable, table=True):
    """One run."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("id", name="uq_runs_id"), Index("ix_runs_state", "state", "seq"))

    seq: int | None = Field(default=None, sa_column=Column(SEQUENCE, primary_key=True))
    id: str
    kind: str
    name: str
    config: str = Field(sa_type=Text)
    state: str
    created_ns: int = Field(sa_type=BigInteger)
    finished_ns: int | None = Field(sa_type=BigInteger)
    summary: str = Field(sa_type=Text)


class MetricsRow(StoreTable, table=True):
    """The figures of one step of a run."""

    __tablename__ = "metrics"

    run_id: str = Field(primary_key=True)
    step: int = Field(primary_key=True)
    stage: str = Field(primary_key=True)
    figures: str = Field(sa_type=Text)
    time_ns: int = Field(sa_type=BigInteger)


class DecisionRow(StoreTable, table=True):
    """One audit entry."""

    __tablename__ = "decisions"
    __table_args__ = (
        UniqueConstraint("id", name="uq_decisions_id"),
        Index("ix_decisions_run", "run_id", "time_ns", "seq"),
    )

    seq: int | None = Field(default=None, sa_column=Column(SEQUENCE, primary_key=True))
    id: str
    run_id: str
    kind: str
    subject: str
    evidence: str = Field(sa_type=Text)
    time_ns: int = Field(sa_type=BigInteger)


METADATA = StoreTable.metadata
"""All tables, as the newest migration leaves them."""


def _table(name: str) -> Table:
    return METADATA.tables[name]


TASKS = _table("tasks")
ROLLOUTS = _table("rollouts")
ATTEMPTS = _table("attempts")
SPANS = _table("spans")
REWARDS = _table("rewards")
RESOURCES = _table("resources")
RUNS = _table("runs")
METRICS = _table("metrics")
DECISIONS = _table("decisions")
