"""A gateway on a real socket, in a thread of its own, and what tests ask of its store."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import openai
import uvicorn
from prometheus_client import CollectorRegistry

import coterie
from coterie import conventions as names
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Endpoint, Mode, Resource, ResourceKind, Rollout, Span, Task
from coterie_server.app import create_app
from coterie_server.gateway import Gateway
from coterie_server.parts import Parts
from coterie_server.settings import Limits, Settings
from coterie_server.tokens import Scope, Token, Tokens, digest_of

TOKEN = "tok-agent-0123456789"
TRAINER_TOKEN = "tok-trainer-0123456789"
READER_TOKEN = "tok-reader-0123456789"
Result = TypeVar("Result")


class RunningGateway:
    """A gateway and its store; use it as a context manager."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.registry: CollectorRegistry
        own = {"first_pause_seconds": 0.02, "health_seconds": 0.2, "spool": str(folder / "spool"), **(settings or {})}
        limits = Limits(body_bytes=1_000_000)
        self.settings = Settings(gateway=own, drain_seconds=2, limits=limits)
        self.store: Store
        self.gateway: Gateway
        self.port = 0
        self._loop: asyncio.AbstractEventLoop
        self._server: uvicorn.Server
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._failed: BaseException | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}/gateway"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def attempt_url(self, rollout: str, attempt: str, role: str | None = None) -> str:
        return f"{self.root}/rollout/{rollout}/attempt/{attempt}{f'/role/{role}' if role else ''}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self.port:
            if self._failed is not None:
                raise self._failed
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[Store], Coroutine[Any, Any, Result]]) -> Result:
        """Do something with the store, in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work(self.store), self._loop).result(timeout=20)

    def publish(self, endpoint: Endpoint | ScriptedModel, name: str = "team", **fields: Any) -> None:
        """Publish an endpoint; by default one for all roles at a scripted model."""
        if isinstance(endpoint, ScriptedModel):
            endpoint = Endpoint(endpoint.base_url, **{"model": "tiny", "policy": "team", "version": 1, **fields})
        content = {one: getattr(endpoint, one) for one in endpoint.__dataclass_fields__}
        self.do(lambda store: store.publish(Resource(name, ResourceKind.ENDPOINT, content)))
        self.gateway._routing._latest_at = float("-inf")

    def begin(self, mode: Mode = Mode.TRAIN, *, pins: Sequence[str] = ("team",), **fields: Any) -> tuple[str, str]:
        """Begin an attempt at a new rollout; gives the ids of both."""

        async def begun(store: Store) -> tuple[str, str]:
            await store.add_tasks([Task("task", "how many?")])
            resources = {name: (await store.get_resource(name)).version for name in pins}
            lease = await store.begin(Rollout("task", mode=mode, resources=resources, **fields), "worker")
            return lease.rollout.id, lease.attempt.id

        return self.do(begun)

    def spans(self, count: int = 1, *, rollout: str | None = None) -> list[Span]:
        """All spans, once there are ``count`` of them. Waits a little longer lest there be more."""

        async def found(store: Store) -> list[Span]:
            deadline = time.monotonic() + 10
            while True:
                page = await store.list_spans(rollout_id=rollout)
                if len(page.items) >= count or time.monotonic() > deadline:
                    return list(page.items)
                await asyncio.sleep(0.01)

        spans = self.do(found)
        assert len(spans) == count, [(span.name, span.status_message) for span in spans]
        return spans

    def figure(self, name: str, **labels: str) -> float:
        """A figure of the metrics."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with coterie.connect(self.folder / "runs.db") as self.store:
            parts = Parts(self.store, self.settings, Tokens(write_tokens(self.folder / "tokens")))
            self.registry = parts.metrics.registry
            app = create_app(parts)
            self.gateway = next(one for one in vars(app._app).values() if isinstance(one, Gateway))
            config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2)
            self._server = uvicorn.Server(config)
            # Not in the main thread: signals are not its own.
            serving = asyncio.create_task(self._server._serve())
            while not self._server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells by no event
                await asyncio.sleep(0.005)
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            await serving


def write_tokens(path: Path) -> Path:
    """A file of tokens with those above."""
    scopes = {TOKEN: Scope.AGENT, TRAINER_TOKEN: Scope.TRAINER, READER_TOKEN: Scope.READ}
    known = [asdict(Token(scope, scope, (scope,), digest_of(token), 0)) for token, scope in scopes.items()]
    path.write_text(json.dumps({"tokens": known}))
    return path


def headers_of(call: str, rollout: str, attempt: str, role: str) -> dict[str, str]:
    """The headers that a program with capture sends."""
    return {
        names.HEADER_CALL_ID: call,
        names.HEADER_ROLLOUT_ID: rollout,
        names.HEADER_ATTEMPT_ID: attempt,
        names.HEADER_ROLE: role,
    }


class RawServer:
    """A server whose answers are written byte by byte, for what a scripted model cannot say."""

    def __init__(self, answer: Callable[[str, dict[str, str], Any], RawAnswer]) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked = (self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(raw))
                outer.requests.append(asked)
                self._send(answer(*asked))

            def do_GET(self) -> None:
                self._send(RawAnswer(b'{"object": "list", "data": []}'))

            def _send(self, sent: RawAnswer) -> None:
                self.send_response(sent.status)
                for name, value in {"content-type": sent.type, **sent.headers}.items():
                    self.send_header(name, value)
                if isinstance(sent.body, bytes):
                    self.send_header("content-length", str(len(sent.body)))
                    self.end_headers()
                    self.wfile.write(sent.body)
                    return
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for piece in sent.body:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


@dataclass(frozen=True, slots=True)
class RawAnswer:
    body: bytes | Sequence[bytes]
    status: int = 200
    type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


CLIENT = openai.OpenAI(api_key=TOKEN, max_retries=0, timeout=20)
RAW = httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}, timeout=20)


def client(url: str, **options: Any) -> openai.OpenAI:
    """A client of the OpenAI SDK. All share one pool: making one takes longer than most tests."""
    return CLIENT.with_options(base_url=url, **options)


def unused_url() -> str:
    """A base URL at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/v1"
