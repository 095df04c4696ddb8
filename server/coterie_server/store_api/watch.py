"""Noticing that a client goes away while it waits."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from coterie_server.store_api.requests import Receive


class ClientWatch:
    """Ends the block early when the client goes away: what it waits for in there is cancelled.

    ``gone`` says afterwards whether it did. Only after the whole body has been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._cancels = True
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
        if not (self.gone and self._cancels):
            return False
        # As in asyncio.timeout: our own cancellation ends here, one of somebody else does not.
        return self._owner.uncancel() == 0 and (error is None or isinstance(error, asyncio.CancelledError))

    def only_note(self) -> None:
        """From now on only note that the client goes away, and let the block go on."""
        self._cancels = False

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._cancels:
            self._owner.cancel()
