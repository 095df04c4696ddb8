"""Pausing a policy while its weights change: new calls wait at the door, those inside end."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from coterie_server.gateway.errors import unavailable

_log = logging.getLogger("coterie.gateway")


@dataclass(slots=True, eq=False)
class Door:
    """The door to one policy."""

    policy: str
    in_flight: int = 0
    waiting: int = 0
    version: int | None = None
    """What ``resume`` said is served from now on; None while nobody said so."""
    _closed: bool = False
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)
    _alarm: asyncio.TimerHandle | None = None

    @property
    def paused(self) -> bool:
        """True while nobody is let in."""
        return self._closed

    async def enter(self, wait_seconds: float) -> None:
        """Go in, or wait while the policy is paused.

        Raises:
            Refusal: 503, it was paused for longer than ``wait_seconds``.
        """
        if self._closed:
            self.waiting += 1
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._open.wait()
            except TimeoutError:
                raise unavailable(
                    f"Policy {self.policy!r} is paused while its weights change, for more than {wait_seconds:g} s now.",
                    code="policy_paused",
                    retry_after=wait_seconds,
                ) from None
            finally:
                self.waiting -= 1
        self.in_flight += 1

    def leave(self) -> None:
        """Come out."""
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()

    async def pause(self, *, drain_seconds: float, at_most_seconds: float) -> bool:
        """Let nobody in, and wait until all are out; False if some are still inside after ``drain_seconds``."""
        self._closed = True
        self._open.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(at_most_seconds, self._forgotten, at_most_seconds)
        self._empty.clear()
        if self.in_flight:
            try:
                async with asyncio.timeout(drain_seconds):
                    await self._empty.wait()
            except TimeoutError:
                return False
        return True

    def resume(self, version: int | None = None) -> None:
        """Let calls in again."""
        if version is not None:
            self.version = version
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._closed = False
        self._open.set()

    def _forgotten(self, seconds: float) -> None:
        _log.error(
            "Policy %r was paused %g s ago and never resumed: it is resumed now. Has its trainer ended?",
            self.policy,
            seconds,
        )
        self._alarm = None
        self.resume()


class Doors:
    """The door of each policy."""

    def __init__(self) -> None:
        self._doors: dict[str, Door] = {}

    def of(self, policy: str) -> Door:
        """A policy's door."""
        if policy not in self._doors:
            self._doors[policy] = Door(policy)
        return self._doors[policy]
