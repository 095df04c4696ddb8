"""The stores under test. Each implementation of the interface passes the same suite: add it to ``STORES``."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

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

    async def __call__(self, name: str = "store", clock: Callable[[], int] | None = None) -> Store:
        path = self.folder / f"{name}.db"
        empty = self.folder / "empty.db"
        if not empty.exists():
            await (await SqliteStore.open(empty)).close()
        if not path.exists():
            shutil.copy(empty, path)
        store = await (SqliteStore.open(path) if clock is None else SqliteStore.open(path, clock=clock))
        self.opened.append(store)
        return store

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


STORES = {"sqlite": SqliteStores}
OpenStore = Callable[..., Awaitable[Store]]
