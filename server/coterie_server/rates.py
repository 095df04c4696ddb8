"""How much one token may ask for at a time."""

from __future__ import annotations

import time

from coterie_server.refusals import too_many
from coterie_server.settings import Limits


class Rates:
    """Counts the requests of each token: so many a second on average, so many at once."""

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.requests_per_second
        self._burst = max(1.0, limits.requests_per_second)
        self._at_once = limits.requests_at_once
        self._left: dict[str, tuple[float, float]] = {}
        """Token's id to the requests that it may make at once, and when that was so."""
        self._running: dict[str, int] = {}

    def enter(self, caller_id: str) -> None:
        """A request begins. Each one that got through must ``leave``.

        Raises:
            Refused: 429, the token asks for too much.
        """
        now = time.monotonic()
        left, then = self._left.get(caller_id, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        if left < 1.0:
            self._left[caller_id] = (left, now)
            raise too_many(
                f"This token makes more than {self._rate:g} requests a second. Send more in one request, or raise "
                "limits.requests_per_second of the server.",
                (1.0 - left) / self._rate,
            )
        running = self._running.get(caller_id, 0)
        if running >= self._at_once:
            raise too_many(
                f"This token has {running} requests under way. Wait for some, or raise limits.requests_at_once of the server.",
                1.0,
            )
        self._left[caller_id] = (left - 1.0, now)
        self._running[caller_id] = running + 1

    def leave(self, caller_id: str) -> None:
        """A request has ended."""
        running = self._running[caller_id] - 1
        if running:
            self._running[caller_id] = running
        else:
            del self._running[caller_id]
