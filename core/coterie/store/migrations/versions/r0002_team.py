"""Retry policies, delays, searches and retention."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"

SPANS_AT_ONCE = 1000

PARTIAL_INDEXES = (
    ("ix_rollouts_group", ["group_id", "seq"], "group_id IS NOT NULL"),
    ("ix_rollouts_delayed", ["state", "available_ns"], "state = 'delayed'"),
    ("ix_rollouts_finished", ["finished_ns", "seq"], "finished_ns IS NOT NULL"),
)


def upgrade() -> None:
    """Add the columns and indexes, and fill in what the kept records tell."""
    op.add_column("rollouts", sa.Column("retry", sa.Text(), nullable=True))
    op.add_column("rollouts", sa.Column("available_ns", sa.BigInteger(), nullable=True))
    for name, columns, where in PARTIAL_INDEXES:
        condition = sa.text(where)
        op.create_index(name, "rollouts", columns, sqlite_where=condition, postgresql_where=condition)
    op.add_column("attempts", sa.Column("renewed_ns", sa.BigInteger(), nullable=True))
    op.execute("UPDATE attempts SET renewed_ns = started_ns WHERE state = 'running'")
    op.create_index("ix_rewards_rollout", "rewards", ["rollout_id", "seq"])
    for name in SPAN_COLUMNS:
        op.add_column("spans", sa.Column(name, sa.String(), nullable=True))
    _fill_in_spans()
    op.create_index("ix_spans_start", "spans", ["start_ns", "seq"])


def downgrade() -> None:
    """Drop them again. What was put off becomes available at once; retry policies are forgotten."""
    _drop_text_index()
    op.execute("UPDATE rollouts SET state = 'queued' WHERE state = 'delayed'")
    op.drop_index("ix_spans_start", "spans")
    for name in reversed(SPAN_COLUMNS):
        op.drop_column("spans", name)
    op.drop_index("ix_rewards_rollout", "rewards")
    op.drop_column("attempts", "renewed_ns")
    for name, _, _ in PARTIAL_INDEXES:
        op.drop_index(name, "rollouts")
    op.drop_column("rollouts", "available_ns")
    op.drop_column("rollouts", "retry")


def _drop_text_index() -> None:
    """The index of words comes into being at the first search, and holds no record of its own."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER IF EXISTS span_removed")
    for name in ("span_words", "text_index"):
        op.execute(f"DROP TABLE IF EXISTS {name}")


SPAN_COLUMNS = {"role": "coterie.role", "agent_path": "coterie.agent.path", "operation": "gen_ai.operation.name"}
"""Column to the attribute that it holds."""


def _fill_in_spans() -> None:
    connection = op.get_bind()
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in ("seq", *SPAN_COLUMNS)]
    spans = sa.table("spans", *columns)
    update = (
        sa.update(spans)
        .where(spans.c.seq == sa.bindparam("of"))
        .values({name: sa.bindparam(f"new_{name}") for name in SPAN_COLUMNS})
    )
    for rows in _spans(connection):
        filled = [{"of": seq, **_columns_of(attributes)} for seq, attributes in rows]
        filled = [values for values in filled if any(values[f"new_{name}"] is not None for name in SPAN_COLUMNS)]
        if filled:
            connection.execute(update, filled)


def _spans(connection: sa.Connection) -> Iterator[Sequence[Any]]:
    after = -1
    while True:
        rows = connection.execute(
            sa.text("SELECT seq, attributes FROM spans WHERE seq > :after ORDER BY seq LIMIT :count"),
            {"after": after, "count": SPANS_AT_ONCE},
        ).all()
        if not rows:
            return
        yield rows
        after = rows[-1].seq


def _columns_of(text: str) -> dict[str, str | None]:
    attributes = json.loads(text)
    values = {name: attributes.get(attribute) for name, attribute in SPAN_COLUMNS.items()}
    return {f"new_{name}": value if isinstance(value, str) else None for name, value in values.items()}
