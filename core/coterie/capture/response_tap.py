"""Listening to a response while the user's code reads it: every byte passes through as it comes.

The tap sits on the one response object, below all that the SDK builds on it: ``Stream``, raw responses, ``iter_lines``.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

from coterie.capture.answers import assembler_for
from coterie.capture.api import Api
from coterie.capture.call import LLMCall
from coterie.capture.faults import note_fault


def tap(response: Any, call: LLMCall, *, streamed: bool) -> None:
    """Record ``call`` from what is read of ``response`` (of httpx or its fork, sync or async), which is unread as yet.

    The call ends when the body ends, breaks, is closed early, or is thrown away.

    Args:
        response: the raw response. Its ``iter_bytes`` and ``close`` are shadowed on this one object; ``iter_raw`` is not
            heard.
        call: ends with it.
        streamed: True for server-sent events, False for one JSON body.
    """
    ear = _Ear(call, _Events(call.api) if streamed else _WholeBody())
    own = {name: getattr(response, name) for name in ("iter_bytes", "aiter_bytes", "close", "aclose")}

    def iter_bytes(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        try:
            ear.reading = True
            for chunk in own["iter_bytes"](*args, **kwargs):
                ear.hear(chunk)
                ear.reading = False
                yield chunk
                ear.reading = True
        except GeneratorExit:
            raise
        except BaseException as error:
            ear.broken(error)
            raise
        ear.end()

    async def aiter_bytes(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        try:
            ear.reading = True
            async for chunk in own["aiter_bytes"](*args, **kwargs):
                ear.hear(chunk)
                ear.reading = False
                yield chunk
                ear.reading = True
        except GeneratorExit:
            raise
        except BaseException as error:
            ear.broken(error)
            raise
        ear.end()

    def close() -> None:
        try:
            own["close"]()
        finally:
            ear.closed()

    async def aclose() -> None:
        try:
            await own["aclose"]()
        finally:
            ear.closed()

    response.iter_bytes, response.aiter_bytes = iter_bytes, aiter_bytes
    response.close, response.aclose = close, aclose
    # The ear must not hold the response: else this would keep it alive for ever.
    weakref.finalize(response, ear.end)
    call.on_abandonment(ear.end)


class _Hearing(Protocol):
    """Makes a body out of bytes."""

    def take(self, chunk: bytes) -> None: ...

    def body(self) -> Mapping[str, Any] | None: ...


class _Ear:
    """Hears a body and ends its call. Nothing that goes wrong here disturbs the reader."""

    def __init__(self, call: LLMCall, hearing: _Hearing) -> None:
        self.reading = False
        """True while the next chunk is fetched: httpx closes a response just before it gives the last one."""
        self._call = call
        self._hearing = hearing
        self._rubbish: ValueError | None = None
        self._deaf = False

    def hear(self, chunk: bytes) -> None:
        if self._deaf:
            return
        try:
            self._hearing.take(chunk)
        except ValueError as error:  # no JSON: the SDK raises it for the user, too
            self._deaf, self._rubbish = True, error
        except Exception:  # noqa: BLE001 - a fault of ours: the user goes on reading
            self._deaf = True
            note_fault("A streamed answer could not be understood")

    def closed(self) -> None:
        if not self.reading:
            self.end()

    def end(self) -> None:
        if self._rubbish is not None:
            self._call.failed(self._rubbish, self._heard())
        else:
            self._call.answered(self._heard())

    def broken(self, error: BaseException) -> None:
        self._call.failed(error, self._heard())

    def _heard(self) -> Mapping[str, Any] | None:
        try:
            return self._hearing.body()
        except Exception:  # noqa: BLE001 - a fault of ours: the user goes on
            note_fault("A streamed answer could not be put together")
            return None


class _Events:
    """Server-sent events: blocks of lines that end with an empty line, the data in lines that start with ``data:``."""

    def __init__(self, api: Api) -> None:
        self._assembler = assembler_for(api)
        self._rest = b""
        self._data: list[bytes] = []

    def take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line.rstrip(b"\r"))

    def body(self) -> Mapping[str, Any] | None:
        return self._assembler.body()

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].lstrip(b" "))
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            if not data.startswith(b"[DONE]"):
                event = json.loads(data)
                if isinstance(event, dict):
                    self._assembler.add(event)


class _WholeBody:
    """One JSON body, read by the user's own means."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def body(self) -> Mapping[str, Any] | None:
        try:
            body = json.loads(b"".join(self._chunks))
        except ValueError:  # closed before the end, or no JSON
            return None
        return body if isinstance(body, dict) else None
