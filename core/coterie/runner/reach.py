"""Whether the store answers, as the calls of one worker find out: said once, and again when it is back."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress

_log = logging.getLogger("coterie.runner")

REMIND_SECONDS = 60.0
"""How often it is said that the store is still away."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0


class Reach:
    """One worker's view of its store."""

    def __init__(self) -> None:
        self._away_since: float | None = None
        self._said_at = 0.0
        self._back = asyncio.Event()

    @property
    def away_seconds(self) -> float | None:
        """For how long no call has succeeded; None while the store answers."""
        return None if self._away_since is None else time.monotonic() - self._away_since

    def failed(self, error: BaseException) -> None:
        """A call failed because of the store, not because of what was asked."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = self._said_at = now
            self._back.clear()
            _log.warning(
                "The store does not answer: %s. Attempts go on, what they record is kept, no new work is taken until "
                "it is back.",
                one_line(error),
            )
        elif now - self._said_at >= REMIND_SECONDS:
            self._said_at = now
            _log.warning("The store has been away for %.0f s: %s", now - self._away_since, one_line(error))

    def answered(self) -> None:
        """A call succeeded."""
        if self._away_since is not None:
            _log.warning("The store answers again, after %.1f s.", time.monotonic() - self._away_since)
            self._away_since = None
            self._back.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but while the store is away no longer than until it answers somebody."""
        if self._away_since is None:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()


class Pauses:
    """Pauses between tries: each twice as long as the one before, and each a little different, so that many workers
    do not come back all at once.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._next = FIRST_PAUSE_SECONDS

    async def take(self) -> None:
        """Wait until the next try, or until the store answers somebody."""
        await self._reach.pause(self._next * random.uniform(0.75, 1.25))
        self._next = min(self._next * 2, LONGEST_PAUSE_SECONDS)


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
