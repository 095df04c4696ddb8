"""Tokens: who may use the server, and for what.

A token is ``ct_`` and 256 random bits. The file of tokens holds only their hashes, so who reads it can use none of them.
It is looked at again when it changes, so a new or revoked token counts within a second in every process.

A route says which scopes may use it: ``require(scope, Scope.RUNNER, Scope.TRAINER)`` with the request's ASGI scope. The edge
has put the caller there before the route is reached; what is left to do takes less than a microsecond.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError
from coterie.vocabulary import new_id, now_ns
from coterie_server.refusals import forbidden

CALLER = "coterie.caller"
"""The key of the ASGI scope under which the edge puts the ``Caller``."""
PREFIX = "ct_"
LOOK_AGAIN_SECONDS = 0.5
"""How often the file is looked at."""


class Scope(StrEnum):
    """What a token is for."""

    AGENT = "agent"
    """Calls of the gateway; OTLP; recording spans and rewards."""
    RUNNER = "runner"
    """Taking work, prolonging and ending it, reading what that needs; and what ``agent`` may."""
    TRAINER = "trainer"
    """Everything but tokens and retention."""
    READ = "read"
    """Looking at everything, changing nothing."""
    ADMIN = "admin"
    """Everything."""


IMPLIED: Mapping[Scope, Sequence[Scope]] = {
    Scope.AGENT: (),
    Scope.RUNNER: (Scope.AGENT,),
    Scope.TRAINER: (Scope.AGENT, Scope.RUNNER, Scope.READ),
    Scope.READ: (),
    Scope.ADMIN: tuple(Scope),
}
"""Scope to the others that it includes."""
ANY = "any"
"""A route that asks for this is there for every token that the server knows."""


@dataclass(frozen=True, slots=True)
class Token:
    """What the file says of one token."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created_ns: int
    expires_ns: int | None = None
    revoked_ns: int | None = None

    def state(self, now: int) -> str:
        """``valid``, ``revoked`` or ``expired``."""
        if self.revoked_ns is not None:
            return "revoked"
        return "expired" if self.expires_ns is not None and self.expires_ns <= now else "valid"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    id: str
    """The token's."""
    name: str
    allowed: frozenset[str]
    """Scopes with those that they include, and ``any``."""
    expires_ns: int | None = None

    @classmethod
    def of(cls, token: Token) -> Caller:
        """Who shows this token."""
        allowed = {ANY, *token.scopes, *(other for scope in token.scopes for other in IMPLIED[scope])}
        return cls(token.id, token.name, frozenset(map(str, allowed)), token.expires_ns)


def require(scope: MutableMapping[str, Any], *any_of: str) -> Caller:
    """The caller, if its token allows one of these scopes.

    Raises:
        Refused: 403, it does not; names the scopes.
    """
    caller: Caller = scope[CALLER]
    allowed = caller.allowed
    for one in any_of:
        if one in allowed:
            return caller
    enough = [scope for scope in Scope if {scope, *IMPLIED[scope]} & set(any_of)]
    raise forbidden(
        f"The token {caller.name!r} does not allow this: it takes one of scope {' or '.join(enough)}. "
        "`coterie token create --scope …` on the server makes one."
    )


class Tokens:
    """The tokens that the server knows, by the file that ``TokenFile`` writes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or is no file of tokens.
        """
        self._file = TokenFile(path)
        self._looked_at = 0.0
        self._mark: tuple[int, ...] | None = None
        self._callers: dict[str, Caller] = {}
        self._read()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def caller(self, token: str) -> Caller | None:
        """Who shows this token; None for one that is unknown, revoked or expired."""
        digest = digest_of(token)
        now = time.monotonic()
        if now - self._looked_at > LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._read_if_changed()
        # Equal hashes are compared by the dictionary; whoever could time that would learn a hash, not a token.
        found = self._callers.get(digest)
        if found is None or (found.expires_ns is not None and found.expires_ns <= now_ns()):
            return None
        return found

    def _read_if_changed(self) -> None:
        try:
            if self._file.mark() != self._mark:
                self._read()
        except (OSError, ConfigError):
            # Half-way through somebody's edit: what was known before counts on. A file that is gone counts as empty.
            if not self._file.path.exists():
                self._callers, self._mark = {}, None

    def _read(self) -> None:
        mark = self._file.mark() if self._file.path.exists() else None
        tokens = self._file.read()
        now = now_ns()
        self._callers = {token.sha256: Caller.of(token) for token in tokens if token.state(now) == "valid"}
        self._mark = mark


class TokenFile:
    """The file of tokens, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> tuple[int, ...]:
        """Changes when the file does."""
        found = self.path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> Sequence[Token]:
        """All tokens, oldest first; none if there is no file.

        Raises:
            ConfigError: it cannot be read, or is no file of tokens.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"tokens {self.path}: it cannot be read: {error}.") from error
        try:
            return [_token(entry) for entry in json.loads(text)["tokens"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"tokens {self.path}: it is no file of tokens ({type(error).__name__}: {error}). Give another path, or take "
                "it away and make new tokens with `coterie token create`."
            ) from None

    def create(self, scopes: Sequence[Scope], name: str = "", *, expires_ns: int | None = None) -> tuple[str, Token]:
        """Make a token: what to show, which is kept nowhere, and what is kept of it.

        Raises:
            ConfigError: no scope, or the file cannot be written.
        """
        if not scopes:
            raise ConfigError(f"A token needs a scope: one or more of {', '.join(Scope)}.")
        shown = PREFIX + secrets.token_urlsafe(32)
        unique = tuple(dict.fromkeys(scopes))
        token = Token(new_id("tk"), name or "-".join(unique), unique, digest_of(shown), now_ns(), expires_ns)
        with self._locked():
            self._write([*self.read(), token])
        return shown, token

    def revoke(self, id_or_name: str) -> Sequence[Token]:
        """Revoke the token of this id, or all of this name. Gives those that it revoked.

        Raises:
            ConfigError: there is none; or the file cannot be written.
        """
        with self._locked():
            tokens = self.read()
            meant = [token for token in tokens if id_or_name in (token.id, token.name)]
            if not meant:
                known = ", ".join(f"{token.id} ({token.name})" for token in tokens) or "none"
                raise ConfigError(f"tokens {self.path}: there is no token {id_or_name!r}. There are: {known}.")
            now = now_ns()
            revoked = [replace(token, revoked_ns=now) for token in meant if token.revoked_ns is None]
            by_id = {token.id: token for token in revoked}
            self._write([by_id.get(token.id, token) for token in tokens])
            return revoked

    def _write(self, tokens: Sequence[Token]) -> None:
        text = json.dumps({"tokens": [asdict(token) for token in tokens]}, indent=1)
        try:
            write_private(self.path, text + "\n")
        except OSError as error:
            raise ConfigError(f"tokens {self.path}: it cannot be written: {error}.") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, in all processes."""
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            held = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise ConfigError(f"tokens {self.path}: its folder cannot be written: {error}.") from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)


def digest_of(token: str) -> str:
    """What is kept of a token. One round is enough: nobody guesses 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read: whole, or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _token(entry: Mapping[str, Any]) -> Token:
    token = Token(**{**entry, "scopes": tuple(Scope(scope) for scope in entry["scopes"])})
    if not re.fullmatch("[0-9a-f]{64}", token.sha256):
        raise ValueError(f"token {token.id}: its sha256 is no hash")
    return token
