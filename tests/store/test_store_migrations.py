"""The tables' versions: what migrations make is what the code expects, up and down, and opening stays quick."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from coterie.store import schema
from coterie.store.sqlite import SqliteStore
from coterie.store.tables import METADATA
from coterie.vocabulary import Rollout, Task


def migrate(path: Path, target: str) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        schema.migrate(connection, target)
    engine.dispose()


async def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await SqliteStore.open(path)).close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        for name, table in METADATA.tables.items():
            made = {index["name"]: index["column_names"] for index in inspect(connection).get_indexes(name)}
            assert made == {index.name: [column.name for column in index.columns] for index in table.indexes}
    engine.dispose()


def test_the_code_knows_all_migrations_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert list(reversed(revisions)) == list(schema.REVISIONS)


async def test_down_and_up_again_with_data(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path)
    await store.add_tasks([Task("t", 1)])
    await store.enqueue([Rollout("t")])
    await store.close()
    migrate(path, "base")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
        ("alembic_version",)
    ]
    connection.close()
    store = await SqliteStore.open(path)
    assert (await store.statistics())["tasks"] == 0
    await store.add_tasks([Task("t", 2)])
    await store.close()
    migrate(path, schema.HEAD)
    store = await SqliteStore.open(path)
    assert [task.input for task in await store.get_tasks(["t"])] == [2]
    await store.close()


OPEN = """
import asyncio, sys
from coterie.store.sqlite import SqliteStore

async def main(path):
    await (await SqliteStore.open(path)).close()

asyncio.run(main(sys.argv[1]))
print("alembic" in sys.modules)
"""


def test_opening_an_up_to_date_file_needs_no_migrations(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    told = [
        subprocess.run(
            [sys.executable, "-c", OPEN, path], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for _ in range(2)
    ]
    assert told == ["True\n", "False\n"]
