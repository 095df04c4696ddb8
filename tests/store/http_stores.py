"""Stores behind a server: one server in a thread of its own for all tests, with a store below each path."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from coterie.store.base import Store
from coterie.store.sqlite import SqliteStore

START_SECONDS = 30


class HttpStores:
    """Opens clients of stores in files below a folder. Clients of one name share the store behind them."""

    def __init__(self, folder: Path) -> None:
        for needed in ("aiohttp", "starlette", "uvicorn", "coterie_server"):
            pytest.importorskip(needed)
        self.folder = folder
        self.opened: list[Store] = []
        self._behind: dict[str, tuple[str, SqliteStore]] = {}

    async def __call__(self, name: str = "store", clock: Callable[[], int] | None = None) -> Store:
        from coterie.store.http import HttpStore

        if name not in self._behind:
            path = self.folder / f"behind-{name}.db"
            behind = await (SqliteStore.open(path) if clock is None else SqliteStore.open(path, clock=clock))
            self._behind[name] = shared_server().serve(behind), behind
        store = await HttpStore.open(self._behind[name][0], token=shared_server().token)
        self.opened.append(store)
        return store

    async def close(self) -> None:
        for store in self.opened:
            await store.close()
        for url, behind in self._behind.values():
            shared_server().forget(url)
            await behind.close()


class SharedServer:
    """A server that runs until the tests end."""

    def __init__(self) -> None:
        import uvicorn

        from coterie_server.tokens import Scope, TokenFile, Tokens

        self._folder = tempfile.TemporaryDirectory()
        file = TokenFile(Path(self._folder.name) / "tokens.json")
        self.token, _ = file.create([Scope.ADMIN])
        self._tokens = Tokens(file.path)

        self._apps: dict[str, Any] = {}
        config = uvicorn.Config(
            self._dispatch, port=0, log_level="warning", access_log=False, lifespan="off", interface="asgi3"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def serve(self, store: Store) -> str:
        """The address at which this store is now."""

        from coterie_server.app import create_app
        from coterie_server.parts import Parts
        from coterie_server.settings import Settings

        name = f"/{len(self._apps)}"
        self._apps[name] = create_app(Parts(store, Settings(), self._tokens))
        return f"http://127.0.0.1:{self._port}{name}"

    def forget(self, url: str) -> None:
        """Serve a store no longer."""
        self._apps["/" + url.rsplit("/", 1)[1]] = None

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        prefix, _, rest = scope["path"][1:].partition("/")
        app = self._apps["/" + prefix]
        await app({**scope, "path": "/" + rest}, receive, send)


@cache
def shared_server() -> SharedServer:
    """The one server."""
    return SharedServer()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    for _ in range(START_SECONDS * 100):
        if true():
            return
        threading.Event().wait(0.01)
    raise TimeoutError
