"""Waking those who wait for work or for the end of rollouts, on whichever event loop they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from threading import Lock


class Waiter:
    """One waiting call. It waits for queued work, or for so many of some rollouts to end."""

    def __init__(self, rollout_ids: Collection[str] | None, may_remain: int) -> None:
        self.remaining = None if rollout_ids is None else set(rollout_ids)
        """The rollouts that have not ended as far as is known; None when it waits for queued work."""
        self.may_remain = may_remain
        """It waits until no more than so many remain."""
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def woken(self, timeout_seconds: float | None) -> None:
        """Return when woken, or after the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._event.wait()
        self._event.clear()

    def wake(self) -> None:
        """Wake it from any thread."""
        # A closed loop raises: nobody waits there any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)


class Wakeups:
    """All who wait at one store. Register first, look second, wait third: so no wake-up is missed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiters: set[Waiter] = set()

    def __bool__(self) -> bool:
        return bool(self._waiters)

    @contextmanager
    def waiter(self, rollout_ids: Collection[str] | None = None, *, may_remain: int = 0) -> Iterator[Waiter]:
        """Register a waiter for the time of the block."""
        waiter = Waiter(rollout_ids, may_remain)
        with self._lock:
            self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def narrow(self, waiter: Waiter, open_ids: Collection[str]) -> None:
        """Let a waiter wait for these alone: what ended before it registered is announced to nobody."""
        with self._lock:
            if waiter.remaining is not None:
                waiter.remaining.intersection_update(open_ids)
                if len(waiter.remaining) <= waiter.may_remain:
                    waiter.wake()

    def announce(self, *, queued: bool, ended: Collection[str]) -> None:
        """Wake those whom a committed change concerns. Call it after the commit, from any thread."""
        with self._lock:
            for waiter in self._waiters:
                if waiter.remaining is None:
                    if queued:
                        waiter.wake()
                elif ended:
                    waiter.remaining.difference_update(ended)
                    if len(waiter.remaining) <= waiter.may_remain:
                        waiter.wake()

    def wake_all(self) -> None:
        """Wake everybody to look again: something unknown changed."""
        with self._lock:
            for waiter in self._waiters:
                waiter.wake()
