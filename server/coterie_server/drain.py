"""The end of the server: whoever waits is told, so that nothing is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MESSAGE = {"type": "coterie.drain"}
"""What a route that watches its client (``receive()`` after the whole body was read) gets once when the server begins to
stop. A long poll answers then with what it has; everything else goes on to its end.
"""


class Drain:
    """Whether the server is stopping."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self._watching: set[asyncio.Task[Any]] = set()

    @property
    def waiting(self) -> int:
        """Requests whose client is watched: long polls and streams."""
        return len(self._watching)

    def begin(self) -> None:
        """Tell all who wait."""
        self.begun.set()
        for task in self._watching:
            task.cancel(_TOLD)

    async def watch(self, receive: Receive) -> MutableMapping[str, Any]:
        """The next message of a client whose body was read, or ``MESSAGE`` when the server begins to stop meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            return await receive()
        except asyncio.CancelledError as cancelled:
            if cancelled.args == (_TOLD,) and task.uncancel() == 0:
                return dict(MESSAGE)
            raise
        finally:
            self._watching.discard(task)


_TOLD = "the server stops"
