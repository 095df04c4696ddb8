"""Turns: so many attempts are played at once, those that were leased ahead wait, first come first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Turns:
    """Hands out turns of one event loop. Passing one on costs a single step of the loop, since model time is lost meanwhile."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def take(self, interrupted: asyncio.Future[Any]) -> bool:
        """Wait for a turn, which must be given back; False, without one, if the attempt was interrupted before."""
        if interrupted.done():
            return False
        if self._free:
            self._free -= 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def leave(_interrupted: asyncio.Future[Any]) -> None:
            if not turn.done():
                turn.set_result(False)

        interrupted.add_done_callback(leave)
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.give_back()
            raise
        finally:
            interrupted.remove_done_callback(leave)

    def give_back(self) -> None:
        """A turn is over: the next in the line has it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1
