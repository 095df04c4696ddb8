"""Opening a store by its address."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from urllib.parse import urlsplit

from coterie.errors import ConfigError
from coterie.store.base import Store


class Connecting:
    """A store that is about to be opened: ``await`` it, or enter it with ``async with``."""

    def __init__(self, opened: Callable[[], Awaitable[Store]]) -> None:
        self._open = opened
        self._store: Store | None = None

    def __await__(self) -> Generator[object, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return await self._store.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.__aexit__(kind, error, traceback)


TOKEN_VARIABLE = "COTERIE_TOKEN"  # noqa: S105 - its name, not its value
"""The environment variable that holds the token of a server, where none is given."""


def connect(url: str | os.PathLike[str], *, token: str | None = None) -> Connecting:
    """Open the store at ``url``.

    - ``sqlite:///runs.db`` (four slashes for an absolute path), or just a path: a file.
    - ``postgresql://user@host:5432/database``: a database, with the extra ``postgres``.
    - ``https://host:port`` or ``http://…``: what ``coterie serve`` offers there, with the extra ``client``. ``token``
      is what lets this program use it; by default it is taken from the environment variable ``COTERIE_TOKEN``.

    Use it as ``async with coterie.connect(url) as store:``, which closes the store at the end, or as
    ``store = await coterie.connect(url)``.

    Raises:
        ConfigError: the address is of no known kind, or what it needs is not installed.
        StoreUnavailableError: the store cannot be reached or opened.
        SchemaVersionError: the database was written by another version of Coterie.
    """
    address = os.fspath(url)
    scheme = address.partition("://")[0].lower() if "://" in address else "sqlite"
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"store {_without_password(address)!r}: unknown kind {scheme!r}. Known are "
            f"{', '.join(f'{name}://' for name in _SCHEMES)} and plain paths, for example sqlite:///runs.db."
        )
    return _SCHEMES[scheme](address, token)


def _sqlite(address: str, _token: str | None) -> Connecting:
    path = address
    if "://" in address:
        rest = address.split("://", 1)[1]
        if rest and not rest.startswith("/"):
            raise ConfigError(
                f"store {address!r}: write three slashes before a relative path, sqlite:///{rest}, "
                f"and four before an absolute one, sqlite:////{rest}."
            )
        path = rest[1:]
    if path in ("", ":memory:"):
        raise ConfigError(
            f"store {address!r}: a store is a file, so that nothing is lost; in memory it cannot be. "
            "Give a path, for example sqlite:///runs.db."
        )

    async def opened() -> Store:
        # Imported here, so that `import coterie` stays light.
        from coterie.store.sqlite import SqliteStore

        return await SqliteStore.open(path)

    return Connecting(opened)


def _server(address: str, token: str | None) -> Connecting:
    try:
        from coterie.store.http import HttpStore, checked_address
    except ImportError as error:
        raise ConfigError(
            f"store {urlsplit(address).scheme}://…: a package is missing ({error.name}). "
            'Install it with `pip install "coterie[client]"`.'
        ) from error
    checked_address(address)

    async def opened() -> Store:
        return await HttpStore.open(address, token=token or os.environ.get(TOKEN_VARIABLE))

    return Connecting(opened)


def _postgresql(address: str, _token: str | None) -> Connecting:
    try:
        from coterie.store.postgres_address import PostgresAddress
    except ImportError as error:
        raise ConfigError(
            f"store {_without_password(address)!r}: the driver of PostgreSQL cannot be imported: {error}. "
            'Install it with `pip install "coterie[postgres]"`.'
        ) from error
    parsed = PostgresAddress.of(address)

    async def opened() -> Store:
        from coterie.store.postgres import PostgresStore

        return await PostgresStore.open(parsed)

    return Connecting(opened)


def _without_password(address: str) -> str:
    """The address as it may be shown: what stands before an @ or behind a question mark may be secret."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.partition("://")[0] + "://…"
    user = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user[0].partition(':')[0]}{user[1]}{user[2]}", query="", fragment="").geturl()


_SCHEMES: dict[str, Callable[[str, str | None], Connecting]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "http": _server,
    "https": _server,
}
