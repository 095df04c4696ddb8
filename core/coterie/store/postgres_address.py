"""Addresses of PostgreSQL databases: ``postgresql://user@host:5432/database?schema=team``, as libpq understands them.

Everything that libpq knows may stand behind the question mark (``sslmode=verify-full``, ``target_session_attrs``), and
what is left out comes from its environment variables and files: ``PGPASSWORD``, ``PGHOST``, ``~/.pgpass``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

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
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise ConfigError(f"store address: it is not understood: {error}. {_FORM}") from None
        given = parse_qsl(parts.query, keep_blank_values=True)
        own = {name: value for name, value in given if name in ("schema", "connections")}
        others = [(name, value) for name, value in given if name not in own]
        shown = _shown(address)
        try:
            # By libpq's own rules: %20, not +, is a space.
            parameters = conninfo_to_dict(urlunsplit(parts._replace(query=urlencode(others, quote_via=quote))))
        except ProgrammingError as error:
            raise ConfigError(
                f"store {shown}: the address is not understood: {_without_secrets(str(error), parts, given)}. {_FORM}"
            ) from None
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


def _shown(address: str) -> str:
    parts = urlsplit(address)
    userinfo, at, host = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    # Of the rest only what cannot be a secret.
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name in _SHOWN])
    return urlunsplit((parts.scheme, f"{user}{at}{host}", parts.path, query, ""))


_SHOWN = ("host", "port", "dbname", "user", "schema", "connections", "sslmode", "target_session_attrs")


def _without_secrets(said: str, parts: SplitResult, given: list[tuple[str, str]]) -> str:
    # libpq repeats the part of an address that it does not understand.
    secret = ":" in parts.netloc.rpartition("@")[0] or any("pass" in name for name, _ in given)
    return "a part of it is wrong" if secret else said.strip()


_FORM = "Write postgresql://user@host:5432/database, special characters in it as %XX."
