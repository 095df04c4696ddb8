"""Addresses of PostgreSQL databases: ``postgresql://user@host:5432/database?schema=team``, as libpq understands them.

Everything that libpq knows may stand behind the question mark (``sslmode=verify-full``, ``target_session_attrs``), and
what is left out comes from its environment variables and files: ``PGPASSWORD``, ``PGHOST``, ``~/.pgpass``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from coterie.errors import ConfigError

CONNECTIONS = 8
"""Connections of one store, besides the one on which it listens."""
_DEFAULTS = {
    # Seconds until a host that does not answer is given up.
    "connect_timeout": "10",
    # A peer that vanished without a word is noticed within a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "application_name": "coterie",
    "client_encoding": "utf8",
}


@dataclass(frozen=True)
class PostgresAddress:
    """Where a database is and how to connect to it."""

    shown: str
    """The address without its password, for messages."""
    schema: str | None
    """The schema of the tables; None for the first one of the search path, which is ``public`` mostly."""
    connections: int
    parameters: dict[str, Any] = field(repr=False)
    """What psycopg's ``connect`` is given."""

    @classmethod
    def of(cls, address: str) -> Self:
        """Take an address apart.

        Raises:
            ConfigError: it is not understood.
        """
        place, _, query = address.partition("?")
        given = [tuple(option.partition("=")[::2]) for option in query.split("&") if option]
        own = {name: unquote(value) for name, value in given if name in ("schema", "connections")}
        others = "&".join(f"{name}={value}" for name, value in given if name not in own)
        shown = _shown(place, given)
        try:
            parameters = conninfo_to_dict(f"{place}?{others}" if others else place)
        except ProgrammingError as error:
            said = "a part of it is wrong" if _may_hold_a_secret(place, given) else str(error).strip()
            raise ConfigError(f"store {shown}: the address is not understood: {said}. {_FORM}") from None
        schema = own.get("schema") or None
        if schema is not None and "\0" in schema:
            raise ConfigError(f"store {shown}: schema {schema!r} is no name of a schema.")
        return cls(shown, schema, _connections(own.get("connections"), shown), {**_DEFAULTS, **parameters})


def _connections(text: str | None, shown: str) -> int:
    if text is None:
        return CONNECTIONS
    if text.isdecimal() and 2 <= int(text) <= 1000:
        return int(text)
    raise ConfigError(f"store {shown}: connections={text} must be a number from 2 to 1000, for example {CONNECTIONS}.")


def _shown(place: str, given: Sequence[tuple[str, ...]]) -> str:
    scheme, _, rest = place.partition("://")
    user, at, host = rest.rpartition("@")
    # Of the options only those that cannot be secrets.
    options = "&".join(f"{name}={value}" for name, value in given if name in _SHOWN)
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{'?' if options else ''}{options}"


_SHOWN = ("host", "port", "dbname", "user", "schema", "connections", "sslmode", "target_session_attrs")


def _may_hold_a_secret(place: str, given: Sequence[tuple[str, ...]]) -> bool:
    # libpq repeats the part of an address that it does not understand.
    return ":" in place.partition("://")[2].rpartition("@")[0] or any("pass" in name for name, _ in given)


_FORM = "Write postgresql://user@host:5432/database, special characters in it as %XX."
