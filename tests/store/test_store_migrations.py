"""The tables' versions: what migrations make is what the code expects, up and down, and opening stays quick."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from postgres_server import shared_server, skip_without_postgresql
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, inspect, select, text
from stores_under_test import Clock

from coterie.store import schema
from coterie.store.base import Store
from coterie.store.filters import SpanFilter
from coterie.store.retention import Retention
from coterie.store.sqlite import SqliteStore
from coterie.store.tables import METADATA
from coterie.vocabulary import FailureCause, RetryPolicy, Rollout, Span, Task, now_ns


class Database(ABC):
    """An empty database that the tests bring to a version, fill and read beside the store."""

    @abstractmethod
    def engine(self) -> Engine:
        """To the same database, without a store."""

    @abstractmethod
    async def open(self, clock: Callable[[], int] = now_ns) -> Store:
        """The store in it."""

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        engine = self.engine()
        with engine.begin() as connection:
            yield connection
        engine.dispose()

    def migrate(self, target: str) -> None:
        with self.connection() as connection:
            schema.migrate(connection, target)

    def execute(self, statement: str) -> None:
        with self.connection() as connection:
            connection.execute(text(statement))

    def table_names(self) -> set[str]:
        with self.connection() as connection:
            return set(inspect(connection).get_table_names())

    def insert(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        with self.connection() as connection:
            for table in self._tables(connection):
                connection.execute(table.insert(), rows[table.name])
                if "seq" in table.columns and connection.dialect.name == "postgresql":
                    # Rows with a number of their own do not move the sequence.
                    connection.execute(
                        text(f"SELECT setval('{table.name}_seq_seq', (SELECT max(seq) FROM {table.name}))")
                    )

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of the tables that the first version has."""
        with self.connection() as connection:
            return {
                table.name: [
                    dict(row._mapping) for row in connection.execute(select(table).order_by(*_in_order(table)))
                ]
                for table in self._tables(connection)
            }

    def _tables(self, connection: Connection) -> list[Table]:
        metadata = MetaData()
        metadata.reflect(connection, only=list(FIRST))
        return metadata.sorted_tables


def _in_order(table: Table) -> list[Any]:
    if "seq" in table.c:
        return [table.c.seq]
    # As the attempts are written above.
    return [table.c.ended_ns.is_not(None), table.c.cause.is_not(None)] if "cause" in table.c else []


class SqliteDatabase(Database):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.db"

    def engine(self) -> Engine:
        return create_engine(f"sqlite:///{self.path}")

    async def open(self, clock: Callable[[], int] = now_ns) -> Store:
        return await SqliteStore.open(self.path, clock=clock)


class PostgresDatabase(Database):
    def __init__(self, _folder: Path) -> None:
        skip_without_postgresql()
        self.url = shared_server().new_database(f"migrated_{uuid4().hex}", empty=True)

    def engine(self) -> Engine:
        import psycopg

        return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(self.url))

    async def open(self, clock: Callable[[], int] = now_ns) -> Store:
        from coterie.store.postgres import PostgresStore

        return await PostgresStore.open(self.url, clock=clock)


DATABASES = {"postgresql": PostgresDatabase, "sqlite": SqliteDatabase}


@pytest.fixture(params=sorted(DATABASES))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    made: Database = DATABASES[request.param](tmp_path)
    return made


async def test_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    await (await database.open()).close()
    with database.connection() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        for name, table in METADATA.tables.items():
            made = {
                index["name"]: index["column_names"]
                for index in inspect(connection).get_indexes(name)
                # PostgreSQL lists the index of a constraint too.
                if "duplicates_constraint" not in index
            }
            assert made == {index.name: [column.name for column in index.columns] for index in table.indexes}


def test_the_code_knows_all_migrations_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert list(reversed(revisions)) == list(schema.REVISIONS)


async def test_down_and_up_again_without_data(database: Database) -> None:
    store = await database.open()
    await store.add_tasks([Task("t", 1)])
    await store.enqueue([Rollout("t")])
    await store.close()
    database.migrate("base")
    assert database.table_names() == {"alembic_version"}
    store = await database.open()
    assert (await store.statistics())["tasks"] == 0
    await store.add_tasks([Task("t", 2)])
    await store.close()
    database.migrate(schema.HEAD)
    store = await database.open()
    assert [task.input for task in await store.get_tasks(["t"])] == [2]
    await store.close()


# A store that the first version wrote

MESSAGES = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "find the needle"}]}])
CODER = {"coterie.role": "coder", "coterie.agent.path": "manager/coder", "gen_ai.operation.name": "chat"}
FIRST: dict[str, list[dict[str, Any]]] = {
    "tasks": [
        {"id": "t", "input": '{"q":"\\u0000?"}', "reference": "null", "dataset": "d", "split": "train", "labels": "{}"}
    ],
    "resources": [
        {
            "name": "coder",
            "version": 1,
            "kind": "prompt",
            "content": '{"text":"x"}',
            "author": "user",
            "parent": None,
            "note": "",
            "created_ns": 1,
        }
    ],
    "runs": [
        {
            "seq": 1,
            "id": "r",
            "kind": "train",
            "name": "n",
            "config": "{}",
            "state": "running",
            "created_ns": 1,
            "finished_ns": None,
            "summary": "{}",
        }
    ],
    "metrics": [{"run_id": "r", "step": 1, "stage": "train", "figures": '{"loss":0.5}', "time_ns": 1}],
    "decisions": [
        {"seq": 1, "id": "de", "run_id": "r", "kind": "stopped", "subject": "s", "evidence": "{}", "time_ns": 1}
    ],
    "rollouts": [
        {
            "seq": number,
            "id": f"ro-{state}",
            "task_id": "t",
            "mode": "train",
            "run_id": "r",
            "group_id": "g" if number == 1 else None,
            "step": 1,
            "resources": '{"coder":1}',
            "sampling": "{}",
            "max_attempts": 2,
            "deadline_seconds": 1.5,
            "state": state,
            "reason": "why" if state == "dead" else None,
            "created_ns": number,
            "finished_ns": 100 + number if state in ("succeeded", "dead") else None,
            "labels": "{}",
        }
        for number, state in enumerate(["queued", "running", "succeeded", "dead"], start=1)
    ],
    "attempts": [
        {
            "id": f"at-{state}",
            "rollout_id": f"ro-{rollout}",
            "number": 1,
            "worker": "w",
            "state": state,
            "started_ns": 50,
            "lease_expires_ns": 10**19 // 2,
            "ended_ns": None if state == "running" else 100,
            "cause": "error" if state == "failed" else None,
            "error": "ValueError: x" if state == "failed" else None,
            "warnings": "[]",
        }
        for rollout, state in (("running", "running"), ("succeeded", "succeeded"), ("dead", "failed"))
    ],
    "spans": [
        {
            "seq": number,
            "trace_id": "a" * 32,
            "span_id": f"{number:016x}",
            "name": "chat",
            "start_ns": number,
            "end_ns": number + 1,
            "parent_id": None,
            "rollout_id": "ro-succeeded" if number % 2 else None,
            "attempt_id": "at-succeeded" if number % 2 else None,
            "status": "unset",
            "status_message": "",
            "attributes": json.dumps(attributes),
            "events": '[["e",1,{}]]',
        }
        for number, attributes in enumerate(
            [
                {**CODER, "gen_ai.input.messages": MESSAGES, "nul": "\x00"},
                {"coterie.role": 5, "gen_ai.operation.name": "execute_tool"},
                {},
                *({"coterie.role": "crowd"} for _ in range(1100)),
            ],
            start=1,
        )
    ],
    "rewards": [
        {
            "seq": 1,
            "id": "rw",
            "rollout_id": "ro-succeeded",
            "attempt_id": "at-succeeded",
            "value": 0.5,
            "name": "reward",
            "source": "return",
            "role": None,
            "agent_path": None,
            "call_id": None,
            "explanation": None,
            "time_ns": 1,
        }
    ],
}


@pytest.fixture
def first(database: Database) -> Database:
    """A database as the first version left it, in use."""
    database.migrate("0001")
    database.insert(FIRST)
    assert database.rows() == FIRST
    return database


async def test_what_the_first_version_wrote_is_all_there(first: Database) -> None:
    store = await first.open()
    queued, running, succeeded, dead = (await store.list_rollouts()).items
    assert queued == Rollout(
        "t",
        id="ro-queued",
        run_id="r",
        group_id="g",
        step=1,
        resources={"coder": 1},
        max_attempts=2,
        deadline_seconds=1.5,
        created_ns=1,
    )
    assert [rollout.state.value for rollout in (running, succeeded, dead)] == ["running", "succeeded", "dead"]
    assert dead.reason == "why"
    statistics = await store.statistics()
    assert {name: statistics[name] for name in FIRST} == {name: len(rows) for name, rows in FIRST.items()}
    assert (await store.get_tasks(["t"]))[0].input == {"q": "\x00?"}
    assert (await store.get_rewards(["at-succeeded"]))["at-succeeded"][0].value == 0.5
    assert (await store.get_resource("coder")).content == {"text": "x"}
    spans = (await store.get_spans(["at-succeeded"]))["at-succeeded"]
    assert len(spans) == 552
    assert spans[0].attributes == {**CODER, "gen_ai.input.messages": MESSAGES, "nul": "\x00"}
    await store.close()


async def test_what_the_first_version_wrote_can_be_searched(first: Database) -> None:
    store = await first.open()

    async def found(**where: Any) -> list[int]:
        page = await store.search_spans(SpanFilter(**where), limit=5000)
        return [int(span.span_id, 16) for span in page.items]

    assert await found(role="coder") == [1]
    assert await found(agent_path="manager/coder") == [1]
    assert await found(operation="execute_tool") == [2]
    assert await found(role="crowd") == list(range(4, 1104))
    assert await found(text="needle") == [1]
    assert await found(run_id="r", role="crowd", started_from_ns=1100) == [1101, 1103]
    await store.close()


async def test_the_work_of_the_first_version_goes_on(first: Database) -> None:
    clock = Clock(200)
    store = await first.open(clock)
    assert await store.heartbeat(["at-running"], lease_seconds=10) == {"at-running"}
    assert [lease.rollout.id for lease in await store.lease("w", limit=9)] == ["ro-queued"]
    clock.advance(11)
    (again,) = await store.lease("w", limit=9)
    assert (again.rollout.id, again.attempt.number) == ("ro-running", 2)
    await store.requeue(["ro-dead"])
    assert [lease.rollout.id for lease in await store.lease("w", limit=9)] == ["ro-dead"]
    pruned = await store.prune(Retention(max_age_seconds=0))
    assert (pruned.rollouts, pruned.spans) == (1, 1103)
    await store.close()


async def test_a_lease_of_the_first_version_counts_from_its_beginning(first: Database) -> None:
    # The clock went back since: the lease is as long as it was, from now.
    first.execute("UPDATE attempts SET started_ns = 1000, lease_expires_ns = 2000 WHERE state = 'running'")
    clock = Clock(500)
    store = await first.open(clock)
    assert list(await store.lease("w", run_id="none")) == []
    assert (await store.get_attempts(["ro-running"]))["ro-running"][0].lease_expires_ns == 1500
    await store.close()


async def test_up_and_down_loses_nothing(first: Database) -> None:
    for _ in range(2):
        first.migrate(schema.HEAD)
        first.migrate("0001")
        assert first.rows() == FIRST


async def test_down_keeps_what_the_first_version_has_words_for(first: Database) -> None:
    store = await first.open(Clock(200))
    retry = RetryPolicy({FailureCause.ERROR: 1}, 5.0)
    await store.enqueue([Rollout("t", id="ro-later", retry=retry, available_ns=10**15, created_ns=7)])
    await store.add_spans([Span("b" * 32, "c" * 16, "chat", 1, 2, attributes=CODER)])
    await store.close()
    first.migrate("0001")
    rows = first.rows()
    later = rows["rollouts"].pop()
    assert (later["id"], later["state"]) == ("ro-later", "queued")
    assert json.loads(rows["spans"].pop()["attributes"]) == CODER
    assert rows == FIRST
    store = await first.open(Clock(200))
    assert [lease.rollout.id for lease in await store.lease("w", limit=9)] == ["ro-queued", "ro-later"]
    page = await store.search_spans(SpanFilter(role="coder", text=None))
    assert [span.trace_id[0] for span in page.items] == ["a", "b"]
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
