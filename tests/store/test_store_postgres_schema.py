"""The tables in a PostgreSQL database: made once, in the schema that was named, and restored from a backup."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from postgres_server import PostgresServer, shared_server, skip_without_postgresql

import coterie
from coterie.errors import SchemaVersionError
from coterie.vocabulary import AttemptState, Rollout, RolloutState, Span, Task

pytestmark = pytest.mark.postgres


@pytest.fixture
def server() -> PostgresServer:
    skip_without_postgresql()
    return shared_server()


@pytest.fixture
def fresh(server: PostgresServer) -> Iterator[str]:
    """The name of a database without tables."""
    name = f"fresh_{uuid4().hex}"
    server.new_database(name, empty=True)
    yield name
    server.run(f'DROP DATABASE "{name}" WITH (FORCE)')


OPEN = """
import asyncio, sys
import coterie

async def main(url):
    async with coterie.connect(url) as store:
        print(await store.statistics())

asyncio.run(main(sys.argv[1]))
print("alembic" in sys.modules)
"""


def opened_elsewhere(url: str, environment: dict[str, str] | None = None) -> str:
    """What a program of its own prints that opens a store."""
    command = [sys.executable, "-c", OPEN, url]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True, env=environment).stdout


async def test_servers_that_start_together_make_the_tables_once(server: PostgresServer, fresh: str) -> None:
    url = server.url(fresh)
    stores = await asyncio.gather(*(_open(url) for _ in range(6)))
    await asyncio.gather(*(store.add_tasks([Task(f"t{number}", 1)]) for number, store in enumerate(stores)))
    assert len((await stores[0].list_tasks()).items) == 6
    for store in stores:
        await store.close()
    assert opened_elsewhere(url).endswith("False\n")


async def _open(url: str) -> coterie.Store:
    return await coterie.connect(url)


async def test_somebody_elses_tables_and_newer_ones_are_left_alone(server: PostgresServer, fresh: str) -> None:
    server.run("CREATE TABLE invoices (id int)", database=fresh)
    with pytest.raises(SchemaVersionError, match=r"invoices.*\?schema=coterie"):
        await coterie.connect(server.url(fresh))
    async with coterie.connect(server.url(fresh, schema="coterie")) as store:
        await store.add_tasks([Task("t", 1)])
    assert server.run("SELECT schemaname FROM pg_tables WHERE tablename = 'tasks'", database=fresh) == [("coterie",)]
    server.run("UPDATE coterie.alembic_version SET version_num = '0999'", database=fresh)
    with pytest.raises(SchemaVersionError, match=r"'0999'.*pip install -U coterie"):
        await coterie.connect(server.url(fresh, schema="coterie"))


async def test_schemas_of_one_database_are_stores_of_their_own(server: PostgresServer, fresh: str) -> None:
    strange = 'The "Team"; drop : schema'
    async with (
        coterie.connect(server.url(fresh, schema="one")) as one,
        coterie.connect(server.url(fresh, schema=quote(strange))) as other,
    ):
        await one.add_tasks([Task("t", 1)])
        await other.add_tasks([Task("t", 2)])
        deaf = asyncio.create_task(other.lease("w", wait_seconds=0.5))
        await asyncio.sleep(0.2)
        rollout = Rollout("t")
        await one.enqueue([rollout])
        assert not await deaf
        (lease,) = await one.lease("w")
        await one.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[Span("a", "b", "chat", 1, 2)])
        assert not (await other.list_spans()).items
        assert [task.input for store in (one, other) for task in (await store.list_tasks()).items] == [1, 2]
        sizes = [(await store.statistics())["bytes"] for store in (one, other)]
        assert all(isinstance(size, int) and size > 100_000 for size in sizes)
    made = server.run("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg%'", database=fresh)
    assert {name for (name,) in made} == {"information_schema", "one", "public", strange}


async def test_a_restored_backup_goes_on(server: PostgresServer, fresh: str, tmp_path: Path) -> None:
    rollouts = [Rollout("t") for _ in range(3)]
    async with coterie.connect(server.url(fresh)) as store:
        await store.add_tasks([Task("t", 1)])
        await store.enqueue(rollouts[:2])
        await store.add_spans([Span("a" * 32, f"{number:016x}", "chat", 1, 2) for number in range(20)])
        (running,) = await store.lease("w")
        backup = tmp_path / "backup.sql"
        # While the store goes on.
        server.tool("pg_dump", "--no-owner", f"--file={backup}", server.url(fresh))
    restored = f"{fresh}_restored"
    server.new_database(restored, empty=True)
    server.tool("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={backup}", server.url(restored))
    async with coterie.connect(server.url(restored)) as store:
        await store.enqueue(rollouts)
        await store.add_spans([Span("b" * 32, f"{number:016x}", "chat", 1, 2) for number in range(5)])
        first = await store.list_spans(limit=20)
        assert {span.trace_id for span in first.items} == {"a" * 32}
        assert [span.trace_id for span in (await store.list_spans(after=first.cursor)).items] == ["b" * 32] * 5
        ended = await store.finish(running.attempt.id, AttemptState.SUCCEEDED)
        assert ended.state is RolloutState.SUCCEEDED
        leases = await store.lease("w", limit=9)
        assert [lease.rollout.id for lease in leases] == [rollout.id for rollout in rollouts[1:]]
    server.run(f'DROP DATABASE "{restored}" WITH (FORCE)')


def test_the_environment_of_libpq_is_heeded(server: PostgresServer, fresh: str) -> None:
    host = server.url().partition("host=")[2]
    environment = {**os.environ, "PGHOST": host, "PGUSER": "postgres", "PGDATABASE": fresh}
    assert "'tasks': 0" in opened_elsewhere("postgresql://", environment)
