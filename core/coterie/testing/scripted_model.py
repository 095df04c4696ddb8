"""``ScriptedModel``: a real OpenAI-compatible server on a real socket, whose answers are written in the test."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from coterie.errors import CoterieError
from coterie.testing.wire_format import SHAPES, WrittenAnswer, error_body, toy_text, toy_tokens
from coterie.vocabulary import JSON

__all__ = ["Fault", "ReceivedRequest", "Reply", "ScriptedModel", "toy_text", "toy_tokens"]


class Fault(StrEnum):
    """A way in which a server goes wrong."""

    HANG = "hang"
    """Reads the request and never answers."""
    CUT = "cut"
    """Closes the connection without an answer, or in the middle of a streamed one."""
    RUBBISH = "rubbish"
    """Answers 200 with a body that is no JSON, or with a streamed chunk that is none."""
    EMPTY = "empty"
    """Answers 200 with an empty body."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer in full. A plain text, message or status is enough for most tests."""

    text: str = ""
    tool_calls: Sequence[Mapping[str, JSON]] = ()
    """Each ``{"name": …, "arguments": {…}}``, or in OpenAI's own form."""
    finish_reason: str | None = None
    """Default: ``tool_calls`` or ``stop``."""
    status: int = 200
    """Anything from 400 is answered as an error with ``text`` as its message."""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    """Before the answer."""
    chunk_delay_seconds: float = 0.0
    """Before each streamed chunk."""
    fault: Fault | None = None
    body: JSON = None
    """Sent as it is, in place of everything above."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any


Answer = str | int | Mapping[str, JSON] | Exception | Fault | Reply


class ScriptedModel:
    """An OpenAI-compatible server whose answers come from a function; use it as a context manager.

    ``answer`` gets the request's JSON body and gives a text, a message (``{"content": …, "tool_calls": […]}``), an
    HTTP status, an exception (answered as status 500), a ``Fault`` or a ``Reply``; it may be a coroutine
    function, and must be one if it waits: a plain one holds up all other answers. What it raises is answered as status
    500.

    Serves ``/v1/chat/completions``, ``/v1/responses``, ``/v1/completions``, Anthropic's ``/v1/messages`` and
    ``/v1/models``, streamed or not. Asked
    with ``return_token_ids`` it gives ``prompt_token_ids`` and ``token_ids`` as vLLM does, and ``logprobs`` when asked
    for: a character is a token (``toy_tokens``), and a prompt continues the one before it exactly.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Any],
        *,
        model: str = "scripted",
        policy_version: int | None = None,
    ) -> None:
        self.model = model
        self.policy_version = policy_version
        """Sent as ``x-coterie-policy-version`` when it is not None. May be changed at any time."""
        self.requests: list[ReceivedRequest] = []
        """Every request to a model endpoint in order of arrival."""
        self.written: dict[str, WrittenAnswer] = {}
        """What was answered, token ids among it, by the call id in the request's header (of the last try)."""
        self._answer = answer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._port = 0
        self._count = 0

    @property
    def base_url(self) -> str:
        """Such as ``http://127.0.0.1:40123/v1``.

        Raises:
            CoterieError: the server does not run.
        """
        if not self._port:
            raise CoterieError("ScriptedModel: it does not run. Use it as `with ScriptedModel(answer) as model:`.")
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> Self:
        """Serve on a free port, in a thread of its own."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-model", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=10)
        return self

    def stop(self) -> None:
        """Close all connections and end the thread. A second call does nothing."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        self._loop, self._thread, self._port = None, None, 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=256, limit=1 << 20)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server stops
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.rstrip().split("\r\n")
        method, path, _ = request_line.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        path = path.partition("?")[0]
        if method == "GET":
            models = {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "coterie"}]}
            return await _send_json(writer, 200, models if path.endswith("/models") else {"status": "ok"}, {})
        shape = next((shape for suffix, shape in SHAPES.items() if path.endswith(suffix)), None)
        if shape is None:
            return await _send_json(writer, 404, error_body(404, f"no such path: {path}"), {})
        body = json.loads(raw)
        self.requests.append(ReceivedRequest(method, path, headers, body))
        reply = await self._reply_to(body)
        extra = dict(reply.headers)
        if self.policy_version is not None:
            extra.setdefault("x-coterie-policy-version", str(self.policy_version))
        await asyncio.sleep(reply.delay_seconds)
        if reply.fault is Fault.HANG:
            await reader.read()
            return False
        if reply.status >= 400:
            return await _send_json(writer, reply.status, error_body(reply.status, reply.text), extra)
        if reply.body is not None:
            return await _send_json(writer, reply.status, reply.body, extra)
        self._count += 1
        written = WrittenAnswer.of(
            body, number=self._count, text=reply.text, tool_calls=reply.tool_calls, finish_reason=reply.finish_reason
        )
        self.written[headers.get("x-coterie-call-id", "")] = written
        if body.get("stream"):
            return await _send_stream(writer, shape.chunks(written), reply, extra)
        if reply.fault is Fault.CUT:
            return False
        if reply.fault is not None:
            return await _send(writer, 200, b"" if reply.fault is Fault.EMPTY else b"{rubbish", extra)
        return await _send_json(writer, 200, shape.body(written), extra)

    async def _reply_to(self, body: dict[str, Any]) -> Reply:
        try:
            answer = self._answer(body)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:  # noqa: BLE001 - the test's function may raise anything: the client gets to see it
            answer = error
        return _as_reply(answer)


def _as_reply(answer: Answer) -> Reply:
    match answer:
        case Reply():
            return answer
        case Fault():
            return Reply(text="a text that is cut somewhere", fault=answer)
        case str():
            return Reply(text=answer)
        case int():
            return Reply(text=f"scripted error {answer}", status=answer)
        case Exception():
            return Reply(text=f"{type(answer).__name__}: {answer}", status=500)
        case Mapping() if "choices" in answer or "output" in answer:
            return Reply(body=dict(answer))
        case Mapping():
            reply = Reply(text=str(answer.get("content") or ""), tool_calls=answer.get("tool_calls") or ())
            return replace(reply, finish_reason=answer.get("finish_reason"))
    return Reply(text=f"ScriptedModel: the answer function gave {answer!r}, which is no answer", status=500)


async def _send_json(writer: asyncio.StreamWriter, status: int, body: JSON, headers: Mapping[str, str]) -> bool:
    return await _send(writer, status, json.dumps(body).encode(), headers)


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, headers: Mapping[str, str]) -> bool:
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    writer.write(_head(status, lines) + body)
    await writer.drain()
    return True


async def _send_stream(
    writer: asyncio.StreamWriter, chunks: Sequence[bytes], reply: Reply, headers: Mapping[str, str]
) -> bool:
    writer.write(_head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **headers}))
    await writer.drain()
    for index, chunk in enumerate(chunks):
        await asyncio.sleep(reply.chunk_delay_seconds)
        if index == len(chunks) // 2 and reply.fault is Fault.CUT:
            return False
        if index == len(chunks) // 2 and reply.fault is Fault.RUBBISH:
            chunk = b"data: {rubbish\n\n"
        if reply.fault is not Fault.EMPTY:
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
