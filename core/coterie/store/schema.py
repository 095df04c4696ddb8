"""The version of a database's tables: told when a file is opened, and brought up to date by migrations.

A new file is brought to the newest version, an older one too. A file of an unknown version is left untouched.
Alembic is imported only when a migration is due, so that opening an up-to-date file stays fast.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, column, inspect, table, text

from coterie.errors import SchemaVersionError

REVISIONS = ("0001", "0002", "0003")
"""All versions that this Coterie knows, oldest first; one migration each in ``migrations/versions``."""
HEAD = REVISIONS[-1]
"""The version that this Coterie reads and writes."""

VERSION = table("alembic_version", column("version_num"))
"""The table of one row that holds the version."""

MIGRATIONS = Path(__file__).parent / "migrations"


def current_version(connection: Connection) -> str | None:
    """The version of a database's tables, or None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if version is None else str(version)


def migration_due(connection: Connection, where: str) -> bool:
    """True when the database is new or of an older version that can be brought up to date.

    Raises:
        SchemaVersionError: it is of a version that this Coterie does not know, or holds somebody else's tables.
    """
    version = current_version(connection)
    if version == HEAD:
        return False
    if version is None:
        strangers = sorted(set(inspect(connection).get_table_names()) - {"alembic_version"})
        if strangers:
            raise SchemaVersionError(
                f"store {where}: this database is not Coterie's; it holds the tables {', '.join(strangers[:5])}"
                f"{', …' if len(strangers) > 5 else ''}. {_ELSEWHERE[connection.dialect.name]} Nothing was changed."
            )
    elif version not in REVISIONS:
        raise SchemaVersionError(
            f"store {where}: its tables are of version {version!r}; this Coterie ({_own_version()}) supports "
            f"{REVISIONS[0]!r} to {HEAD!r}. It was written by a newer Coterie: upgrade with "
            f"`pip install -U coterie`. {_ELSEWHERE[connection.dialect.name]} Nothing was changed."
        )
    return True


def migrate(connection: Connection, target: str = HEAD) -> None:
    """Bring the tables up or down to a version (``"base"`` for none) on a connection with an open transaction."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    downwards = target == "base" or _position(target) < _position(current_version(connection))

    def steps(revision: Any, _context: object) -> Any:
        return script._downgrade_revs(target, revision) if downwards else script._upgrade_revs(target, revision)

    plan: Callable[[Any, object], Any] = steps
    with EnvironmentContext(config, script, fn=plan, destination_rev=target) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()


_ELSEWHERE = {
    "postgresql": "Or choose another database, or a schema of its own, with ?schema=coterie in the address.",
    "sqlite": "Or choose another path.",
}


def _position(version: str | None) -> int:
    return -1 if version is None else REVISIONS.index(version)


def _own_version() -> str:
    try:
        return importlib.metadata.version("coterie")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
