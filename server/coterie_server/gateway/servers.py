"""The model servers of a policy: which of them gets a call, and which are down."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from yarl import URL

from coterie_server.gateway.settings import Upstream

_log = logging.getLogger("coterie.gateway")

FAILURES_UNTIL_DOWN = 3
"""So many connections lost or 503s in a row. One that cannot be opened is enough."""
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class Server:
    """One model server."""

    upstream: Upstream
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    down_until: float = 0.0
    """Monotonic seconds; 0 while it is up."""
    _urls: dict[str, URL] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Host and port, for spans, metrics and messages."""
        return urlsplit(self.upstream.base_url).netloc

    @property
    def up(self) -> bool:
        """True unless it failed of late. After its rest it is given another try."""
        return not self.down_until or time.monotonic() >= self.down_until

    @property
    def key(self) -> str | None:
        """Its API key."""
        return os.environ.get(self.upstream.api_key_env) if self.upstream.api_key_env else None

    def url(self, path: str) -> URL:
        """Where a path of the API is there."""
        if path not in self._urls:
            self._urls[path] = URL(self.upstream.base_url.rstrip("/") + path)
        return self._urls[path]

    def failed(self, why: str, *, at_once: bool) -> None:
        """Note that it did not answer; ``at_once`` if it could not even be reached."""
        self.failures += 1
        if not at_once and self.failures < FAILURES_UNTIL_DOWN:
            return
        if not self.down_until:
            _log.warning("Model server %s is down: %s", self.name, why)
        rest = FIRST_REST_SECONDS * 2 ** min(self.failures - 1, 10)
        self.down_until = time.monotonic() + min(rest, LONGEST_REST_SECONDS)

    def answered(self) -> None:
        """Note that it answered."""
        if self.failures:
            self.failures = 0
            if self.down_until:
                _log.warning("Model server %s is up again.", self.name)
                self.down_until = 0.0


class Servers:
    """All model servers that the gateway knows, one object each, whoever refers to it."""

    def __init__(self) -> None:
        self._known: dict[Upstream, Server] = {}

    def of(self, upstreams: Sequence[Upstream]) -> tuple[Server, ...]:
        """The servers at these places."""
        return tuple(self._one(upstream) for upstream in upstreams)

    def all(self) -> Sequence[Server]:
        """Every one so far."""
        return tuple(self._known.values())

    def _one(self, upstream: Upstream) -> Server:
        if upstream not in self._known:
            self._known[upstream] = Server(upstream)
        return self._known[upstream]


def in_order(servers: Sequence[Server], rollout_id: str | None) -> list[Server]:
    """The servers that are up, best first.

    Calls of one rollout go to one server, whose prefix cache knows their beginning: the one that wins the draw by hash of
    rollout and server (rendezvous hashing), so that when one goes down only its own rollouts move. Calls of no rollout go
    to the one with least to do.
    """
    up = [server for server in servers if server.up]
    if len(up) < 2:
        return up
    if rollout_id is None:
        return sorted(up, key=lambda server: server.in_flight)
    return sorted(up, key=lambda server: _draw(rollout_id, server.upstream.base_url), reverse=True)


def _draw(rollout_id: str, base_url: str) -> bytes:
    return hashlib.blake2b(f"{rollout_id}\n{base_url}".encode(), digest_size=8).digest()
