"""Spans on their way to the server: what is added while a request is under way goes together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from coterie.errors import StoreError, StoreUnavailableError


class MergedWrites:
    """Lists that many callers on one event loop write at once, each acknowledged when the server has acknowledged it.

    ``send`` writes the JSON of one list. ``largest`` is how many bytes are put together at most.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], *, largest: int) -> None:
        self._send = send
        self._largest = largest
        self._waiting: list[_Write] = []
        self._sending = False
        self._task: asyncio.Task[None] | None = None

    async def write(self, body: bytes) -> None:
        """Write a JSON list that is not empty. A call that is cancelled before its turn came leaves it out."""
        if self._sending:
            write = _Write(body, asyncio.get_running_loop().create_future())
            self._waiting.append(write)
            await write.written
            return
        self._sending = True
        try:
            await self._send(body)
        finally:
            self._go_on()

    def _go_on(self) -> None:
        """Somebody's request has ended: send what was added meanwhile."""
        if self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._send_waiting())
        else:
            self._sending = False

    async def _send_waiting(self) -> None:
        try:
            group = self._next_group()
            if not group:
                return
            try:
                await self._send(_joined([write.body for write in group]))
            except StoreUnavailableError as error:
                _fail(group, error)
            except StoreError as error:
                if len(group) == 1:
                    _fail(group, error)
                else:
                    # One that is refused must not fail the others.
                    for write in group:
                        await self._send_alone(write)
            except BaseException:
                for write in group:
                    write.written.cancel()
                raise
            else:
                for write in group:
                    if not write.written.done():
                        write.written.set_result(None)
        finally:
            self._go_on()

    async def _send_alone(self, write: _Write) -> None:
        try:
            await self._send(write.body)
        except StoreError as error:
            _fail([write], error)
        else:
            if not write.written.done():
                write.written.set_result(None)

    def _next_group(self) -> list[_Write]:
        group: list[_Write] = []
        size = 0
        for count, write in enumerate(self._waiting):
            size += len(write.body)
            if group and size > self._largest:
                self._waiting = self._waiting[count:]
                return group
            if not write.written.done():
                group.append(write)
        self._waiting = []
        return group


@dataclass(slots=True, eq=False)
class _Write:
    body: bytes
    written: asyncio.Future[None]


def _joined(lists: list[bytes]) -> bytes:
    return lists[0] if len(lists) == 1 else b"[" + b",".join([body[1:-1] for body in lists]) + b"]"


def _fail(group: list[_Write], error: StoreError) -> None:
    for write in group:
        if not write.written.done():
            write.written.set_exception(error)
