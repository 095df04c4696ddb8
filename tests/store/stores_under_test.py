"""The stores under test. Each implementation of the interface passes the same suite: add it to ``STORES``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from http_stores import HttpStores
from postgres_server import DATABASES, shared_server, skip_without_postgresql

from coterie.store.base import Store
from coterie.store.sqlite import SqliteStore


@dataclass
class Clock:
    """A clock that a test sets."""

    now: int = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@dataclass
class SqliteStores:
    """Opens stores in files below a folder. A file of no name yet is a copy of an empty store, which is quicker."""

    folder: Path
    opened: list[Store] = field(default_factory=list)
    empty: ClassVar[bytes | None] = None

    async def __call__(self, name: str = "store", clock: Callable[[], int] | None = None) -> Store:
        path = self.folder / f"{name}.db"
        if SqliteStores.empty is None:
            await (await SqliteStore.open(path)).close()
            SqliteStores.empty = path.read_bytes()
        elif not path.exists():
            path.write_bytes(SqliteStores.empty)
        store = await (SqliteStore.open(path) if clock is None else SqliteStore.open(path, clock=clock))
        self.opened.append(store)
        return store

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


class PostgresStores:
    """Opens stores in databases of one server for all tests; what a test has used is emptied for the next."""

    def __init__(self, _folder: Path) -> None:
        skip_without_postgresql()
        self.opened: list[Store] = []
        self._databases: dict[str, str] = {}

    async def __call__(self, name: str = "store", clock: Callable[[], int] | None = None) -> Store:
        from coterie.store.postgres import PostgresStore

        if name not in self._databases:
            self._databases[name] = await asyncio.to_thread(DATABASES.take)
        url = shared_server().url(self._databases[name])
        store = await (PostgresStore.open(url) if clock is None else PostgresStore.open(url, clock=clock))
        self.opened.append(store)
        return store

    async def close(self) -> None:
        for store in self.opened:
            await store.close()
        for database in self._databases.values():
            await asyncio.to_thread(DATABASES.give_back, database)


STORES = {"http": HttpStores, "postgresql": PostgresStores, "sqlite": SqliteStores}
OpenStore = Callable[..., Awaitable[Store]]
