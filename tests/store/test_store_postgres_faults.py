"""A PostgreSQL database that cannot be used: each time a sentence that says what to do, and nothing half done."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import DATABASES, PostgresServer, shared_server, skip_without_postgresql

import coterie
from coterie.errors import ConfigError, StoreError, StoreUnavailableError
from coterie.vocabulary import Resource, ResourceKind, Rollout, Span, Task

pytestmark = pytest.mark.postgres


@pytest.fixture
def server() -> PostgresServer:
    skip_without_postgresql()
    return shared_server()


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    """The name of an empty database."""
    name = DATABASES.take()
    yield name
    DATABASES.give_back(name)


async def refusal(url: str) -> str:
    with pytest.raises(StoreUnavailableError) as caught:
        async with coterie.connect(url):
            pass
    return str(caught.value)


async def test_a_server_that_is_not_there(server: PostgresServer, tmp_path: Path) -> None:
    told = await refusal(f"postgresql://me@/db?host={tmp_path}")
    assert "nothing listens there. Start the server" in told
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        told = await refusal(f"postgresql://me:secret@127.0.0.1:{unused.getsockname()[1]}/db")
    assert "nothing listens there" in told
    assert "secret" not in told
    assert "host is not known" in await refusal("postgresql://me@no-such-host.invalid/db")


async def test_a_host_that_does_not_answer(server: PostgresServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = await asyncio.wait_for(
            refusal(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db?connect_timeout=2"), 20
        )
    assert "did not answer in time" in told


async def test_an_unknown_database(server: PostgresServer) -> None:
    assert "no such database. Create it first: `createdb" in await refusal(server.url("nowhere"))
    assert "refused this user" in await refusal(server.url(user="nobody"))


@pytest.fixture
def locked_user(server: PostgresServer) -> Iterator[str]:
    """A user who needs a password, which is ``opensesame``."""
    rules = server.folder / "pg_hba.conf"
    before = rules.read_text()
    server.run("CREATE ROLE locked LOGIN PASSWORD 'opensesame'")
    rules.write_text("local all locked scram-sha-256\n" + before)
    server.run("SELECT pg_reload_conf()")
    yield "locked"
    rules.write_text(before)
    server.run("SELECT pg_reload_conf()", "DROP OWNED BY locked", "DROP ROLE locked")


async def test_passwords_are_taken_from_where_psycopg_takes_them_and_never_shown(
    server: PostgresServer,
    locked_user: str,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    plain = server.url(database, user=locked_user)
    server.run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {locked_user}", database=database)
    server.run(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {locked_user}", database=database)
    for wrong in (plain, plain.replace("locked@", "locked:hush-hush@"), plain + "&password=hush-hush"):
        told = await refusal(wrong)
        assert "refused this user or password. Give the password in PGPASSWORD" in told
        assert "hush-hush" not in told
    async with coterie.connect(plain.replace("locked@", "locked:opensesame@")) as store:
        await store.add_tasks([Task("t", 1)])
        with pytest.raises(StoreError) as caught:
            await store.get_tasks(["x\0"])
    monkeypatch.setenv("PGPASSWORD", "opensesame")
    async with coterie.connect(plain) as store:
        assert [task.id for task in (await store.list_tasks()).items if task.id == "t"] == ["t"]
    for shown in (str(caught.value), repr(store), repr(vars(store)), caplog.text):
        assert "opensesame" not in shown
        assert "hush-hush" not in shown
    server.run(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {locked_user}", database=database)
    server.run(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {locked_user}", database=database)


async def test_a_user_without_rights(server: PostgresServer) -> None:
    server.run("CREATE ROLE guest LOGIN", "CREATE DATABASE closed")
    told = await refusal(server.url("closed", user="guest"))
    assert "lacks a right" in told
    assert "GRANT USAGE, CREATE ON SCHEMA public" in told
    server.run("ALTER DATABASE closed OWNER TO guest")
    async with coterie.connect(server.url("closed", user="guest")) as store:
        await store.check()
    server.run("DROP DATABASE closed", "DROP ROLE guest")


async def test_a_read_only_database(server: PostgresServer, database: str) -> None:
    async with coterie.connect(server.url(database)) as store:
        await store.add_tasks([Task("t", 1)])
    server.run(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    try:
        async with coterie.connect(server.url(database)) as store:
            for write in (
                store.add_tasks([Task("u", 1)]),
                store.add_spans([Span("a", "b", "chat", 1, 2)]),
                store.check(),
            ):
                with pytest.raises(StoreUnavailableError, match="read-only"):
                    await write
            assert len((await store.list_tasks()).items) == 1
    finally:
        server.run(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
    assert "target_session_attrs" in await refusal(server.url(database, target_session_attrs="standby"))


async def test_too_many_connections(server: PostgresServer, database: str) -> None:
    import psycopg

    server.run("CREATE ROLE busy LOGIN CONNECTION LIMIT 1")
    url = server.url(database, user="busy")
    with psycopg.connect(url):
        told = await refusal(url)
    assert "takes no more connections" in told
    assert "?connections=4" in told
    server.run("DROP ROLE busy")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of a few MB."""
    folder = Path(tempfile.mkdtemp(prefix="coterie-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


async def test_a_full_disk(server: PostgresServer, small_disk: Path) -> None:
    place = small_disk / "data"
    place.mkdir()
    shutil.chown(place, "pgserver", "pgserver")
    server.run(f"CREATE TABLESPACE small LOCATION '{place}'")
    url = server.new_database("tiny", more="TABLESPACE small")
    try:
        async with coterie.connect(url) as store:
            kept = 0

            async def fill() -> None:
                nonlocal kept
                while kept < 2000:
                    # Text that does not compress.
                    attributes = {"text": os.urandom(30_000).hex()}
                    await store.add_spans([Span("a" * 32, f"{kept:016x}", "chat", 1, 2, attributes=attributes)])
                    kept += 1

            with pytest.raises(StoreUnavailableError, match=r"disk is full\. Free some space"):
                await fill()
            assert kept > 10
            assert len((await store.list_spans(limit=5000)).items) == kept
    finally:
        server.run("DROP DATABASE tiny", "DROP TABLESPACE small")


async def test_lost_connections_are_made_again(server: PostgresServer, database: str) -> None:
    """All connections are cut again and again while many write: nobody notices."""
    async with coterie.connect(server.url(database)) as store:
        await store.add_tasks([Task("t", 1)])
        stop = asyncio.Event()

        async def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                await store.add_spans([Span(f"{writer:032x}", f"{number:016x}", "chat", 1, 2)])
                rollout = Rollout("t")
                await store.enqueue([rollout])
                await store.get_rollouts([rollout.id])
                number += 1
            kept = await store.list_spans(trace_id=f"{writer:032x}", limit=10**6)
            assert len(kept.items) == number

        async def cut() -> None:
            for _ in range(6):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(
                    server.run,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = '{database}' AND pid <> pg_backend_pid()",
                )
            stop.set()

        await asyncio.wait_for(asyncio.gather(cut(), *(write(writer) for writer in range(6))), 60)


class LossyProxy:
    """Stands between a store and its server, and swallows the answer to one COMMIT together with the connection."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.swallow = threading.Event()
        self.swallowed = threading.Event()
        self.folder = folder
        self._target = next(server.folder.glob(".s.PGSQL.5432"), None) or next(
            Path(server.url().partition("host=")[2]).glob(".s.PGSQL.5432")
        )
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(self._target))
            lost = threading.Event()
            threading.Thread(target=self._forward, args=(client, upstream, lost), daemon=True).start()
            threading.Thread(target=self._back, args=(upstream, client, lost), daemon=True).start()

    def _forward(self, client: socket.socket, upstream: socket.socket, lost: threading.Event) -> None:
        try:
            while data := client.recv(65536):
                if b"COMMIT\0" in data and self.swallow.is_set():
                    self.swallow.clear()
                    lost.set()
                upstream.sendall(data)
        except OSError:
            pass
        upstream.close()

    def _back(self, upstream: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        try:
            while data := upstream.recv(65536):
                if lost.is_set():
                    self.swallowed.set()
                    break
                client.sendall(data)
        except OSError:
            pass
        client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[LossyProxy]:
    folder = Path(tempfile.mkdtemp(prefix="coterie-proxy-"))
    proxy = LossyProxy(server, folder)
    yield proxy
    proxy.close()
    shutil.rmtree(folder)


async def test_a_write_whose_answer_is_lost_is_made_once(proxy: LossyProxy, database: str) -> None:
    async with coterie.connect(f"postgresql://postgres@/{database}?host={proxy.folder}") as store:
        await store.add_tasks([Task("t", 1)])

        async def swallowing(call: object) -> object:
            proxy.swallowed.clear()
            proxy.swallow.set()
            outcome = await call  # type: ignore[misc]
            assert proxy.swallowed.is_set()
            return outcome

        rollouts = [Rollout("t") for _ in range(3)]
        await swallowing(store.enqueue(rollouts))
        assert [rollout.id for rollout in (await store.list_rollouts()).items] == [rollout.id for rollout in rollouts]
        assert not await store.lease("w", run_id="none")
        # The leases of which nobody heard are given back unharmed; nothing waits for them to run out.
        leases = await swallowing(store.lease("w", limit=3))
        assert len(leases) == 3  # type: ignore[arg-type]
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
        assert {tuple(attempt.state.value for attempt in tried) for tried in attempts.values()} == {
            ("cancelled", "running")
        }
        # A request that has an id gets what it was given before.
        await store.enqueue([Rollout("t")])
        (again,) = await swallowing(store.lease("w", request_id="r"))  # type: ignore[misc]
        assert [attempt.number for attempt in (await store.get_attempts([again.rollout.id]))[again.rollout.id]] == [1]
        await swallowing(store.add_spans([Span("a", "b", "chat", 1, 2)]))
        assert len((await store.list_spans()).items) == 1
        # Without a version, publishing twice would make two of it.
        with pytest.raises(StoreUnavailableError, match="not known whether the change was made"):
            await swallowing(store.publish(Resource("p", ResourceKind.MEMORY, {})))
        assert [resource.version for resource in await store.list_resources(name="p")] == [1]
        await swallowing(store.publish(Resource("p", ResourceKind.MEMORY, {"n": 2}, version=2)))
        assert [resource.version for resource in await store.list_resources(name="p")] == [1, 2]


async def test_a_lock_that_is_held_for_too_long(
    server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    from coterie.store import postgres

    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_SECONDS", 0.3)
    async with coterie.connect(server.url(database)) as store:
        await store.add_tasks([Task("t", 1)])
        with psycopg.connect(server.url(database)) as other:
            other.execute("UPDATE tasks SET split = 'x' WHERE id = 't'")
            with pytest.raises(StoreUnavailableError, match="held a lock for too long"):
                await store.add_tasks([Task("t", 2)])
            other.rollback()
        await store.add_tasks([Task("t", 3)])
        assert [task.input for task in await store.get_tasks(["t"])] == [3]


async def test_a_database_that_does_not_hold_all_text(server: PostgresServer) -> None:
    server.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "encoded in LATIN1" in await refusal(server.url("latin"))
    server.run("DROP DATABASE latin")


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("postgresql://me:hush@host/db?no_such_option=1", "not understood"),
        ("postgresql://me@host/db?connections=1", "from 2 to 1000"),
        ("postgresql://me@host/db?connections=many", "from 2 to 1000"),
        ("postgresql://me:hush@[::1/db", "not understood"),
        ("postgres://me:hush@host/db", "unknown kind"),
    ],
)
def test_addresses_that_are_not_understood(address: str, advice: str) -> None:
    skip_without_postgresql()
    with pytest.raises(ConfigError, match=advice) as caught:
        coterie.connect(address)
    assert "hush" not in str(caught.value)


async def test_one_span_that_cannot_be_stored_fails_alone(server: PostgresServer, database: str) -> None:
    good = [Span("a" * 32, f"{number:016x}", "chat", 1, 2) for number in range(9)]
    bad = [
        Span("a" * 32, "too late", "chat", 1, 2**63),
        Span("a" * 32, "no number", "chat", "now", 2),  # type: ignore[arg-type]
        Span("a" * 32, "no text", "chat", 1, 2, rollout_id=object()),  # type: ignore[arg-type]
    ]
    async with coterie.connect(server.url(database)) as store:
        writes = [store.add_spans([span]) for span in (*good[:4], *bad, *good[4:])]
        outcomes = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 30)
        assert [outcome is None for outcome in outcomes] == [True] * 4 + [False] * 3 + [True] * 5
        for outcome in outcomes[4:7]:
            assert isinstance(outcome, StoreError)
            assert "cannot be stored" in str(outcome)
        assert {span.span_id for span in (await store.list_spans()).items} == {span.span_id for span in good}


async def test_a_closed_store_says_so(server: PostgresServer, database: str) -> None:
    store = await coterie.connect(server.url(database))
    waiting = asyncio.create_task(store.lease("w", wait_seconds=30))
    await asyncio.sleep(0.2)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(StoreError, match="closed"):
        await store.add_spans([Span("a", "b", "chat", 1, 2)])
    with pytest.raises(StoreError, match="closed"):
        await store.list_tasks()
    left = server.run(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
    assert left == [(0,)]
