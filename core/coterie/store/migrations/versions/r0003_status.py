"""Status and scores of resources."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Add the columns. The newest version of each name, which was read by default until now, becomes the active one."""
    op.add_column("resources", sa.Column("status", sa.String(), nullable=False, server_default="active"))
    op.add_column("resources", sa.Column("scores", sa.Text(), nullable=False, server_default="{}"))
    op.execute(
        "UPDATE resources SET status = 'retired' WHERE EXISTS "
        "(SELECT 1 FROM resources AS later WHERE later.name = resources.name AND later.version > resources.version)"
    )
    active = sa.text("status = 'active'")
    op.create_index("ix_resources_active", "resources", ["name"], sqlite_where=active, postgresql_where=active)


def downgrade() -> None:
    """Drop them again: the newest version of each name is read by default, whatever its status was."""
    op.drop_index("ix_resources_active", "resources")
    op.drop_column("resources", "scores")
    op.drop_column("resources", "status")
