"""Noticing that a client goes away, or that the server is to stop, while something is waited for."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from coterie_server.drain import MESSAGE
from coterie_server.store_api.requests import Receive


class ClientWatch:
    """Ends the block early when the client goes away: what is waited for in there is cancelled. ``gone`` says so.
    With ``drains`` it ends early, too, when the server is to stop. ``cancelled`` says whether it ended early.

    Use it only after the whole body has been read.
    """

    def __init__(self, receive: Receive, *, drains: bool = False) -> None:
        self._receive = receive
        self._drains = drains
        self._cancels = True
        self.cancelled = False
        self.gone = False

    async def __aenter__(self) -> Self:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._watching.cancel()
        if not self.cancelled:
            return False
        # As in asyncio.timeout: our own cancellation ends here, one of somebody else does not.
        return self._owner.uncancel() == 0 and (error is None or isinstance(error, asyncio.CancelledError))

    def only_note(self) -> None:
        """From now on only note what happens, and let the block go on."""
        self._cancels = False

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == MESSAGE["type"]:
                if self._drains:
                    self._cancel()
            elif message["type"] == "http.disconnect":
                self.gone = True
                self._cancel()
                return

    def _cancel(self) -> None:
        if self._cancels:
            self._cancels = False
            self.cancelled = True
            self._owner.cancel()
