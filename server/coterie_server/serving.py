"""One process of the server, from the opening of its store to the end of its last request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn

from coterie.connecting import connect
from coterie.errors import ConfigError
from coterie_server.app import create_app
from coterie_server.connections import guarded, watch_connections
from coterie_server.parts import Parts
from coterie_server.redaction import RedactingFormatter
from coterie_server.settings import Settings
from coterie_server.token_places import tokens_path
from coterie_server.tokens import Tokens

logger = logging.getLogger("coterie.server")

ENDED_AT_ONCE = 130
"""Exit code after a second signal."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address cannot be used; says why.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"host {host}, port {port}: the server cannot listen there: {error.strerror or error}. Choose another with "
            "--host and --port; `--port 0` takes any that is free."
        ) from error
    return listener


def address_of(settings: Settings, listener: socket.socket) -> str:
    """What a client on this machine connects to."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(settings: Settings, listener: socket.socket, ready: Callable[[int | None], None]) -> None:
    """Serve until a signal; ``ready`` is called with the port of gRPC when requests are taken.

    Raises:
        ConfigError: a setting is wrong.
        StoreUnavailableError: the store cannot be opened.
    """
    write_log()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, listener, ready))


async def serve(settings: Settings, listener: socket.socket, ready: Callable[[int | None], None]) -> None:
    """The same in a running event loop."""
    tokens = Tokens(tokens_path(settings))
    context = tls_context(settings)
    async with connect(settings.store) as store:
        parts = Parts(store, settings, tokens)
        app = create_app(parts)
        config = uvicorn.Config(
            app,
            http=guarded(settings.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=settings.behind_proxy,
            forwarded_allow_ips="*" if settings.behind_proxy else None,
            timeout_keep_alive=round(settings.limits.idle_seconds),
            timeout_graceful_shutdown=round(settings.drain_seconds) or 1,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        async with _otlp_over_grpc(parts) as grpc_port:
            server = _Server(config, parts, lambda: ready(grpc_port))
            watching = asyncio.create_task(watch_connections(server.server_state.connections, settings.limits))
            try:
                await server.serve(sockets=[listener])
            finally:
                watching.cancel()
        if not server.started:
            raise ConfigError("The server could not start; its log tells why.")


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What TLS works with; None without a certificate.

    Raises:
        ConfigError: certificate or key cannot be used.
    """
    if settings.tls_cert is None:
        if settings.tls_key is not None:
            raise ConfigError("--tls-key: there is a key but no certificate. Give --tls-cert too.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {settings.tls_cert}, --tls-key {settings.tls_key}: they cannot be used: {error}. Both must be PEM "
            "files that belong together."
        ) from error
    return context


def write_log() -> None:
    """Write warnings and errors to stderr, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


@contextlib.asynccontextmanager
async def _otlp_over_grpc(parts: Parts) -> AsyncIterator[int | None]:
    """Its port while the block runs; None if the settings name none. Then gRPC, which is large, is not even imported."""
    if parts.settings.grpc_port is None:
        yield None
        return
    from coterie_server.otlp.rpc import grpc_server

    async with grpc_server(parts, parts.settings.grpc_port) as port:
        yield port


class _Server(uvicorn.Server):
    """uvicorn, that tells who waits before it stops."""

    def __init__(self, config: uvicorn.Config, parts: Parts, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._parts = parts
        self._ready = ready
        self._stopping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal. uvicorn's own would end the process by the same signal once more, with no exit code of 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._parts.stopping:
            # What was acknowledged is on disk.
            os._exit(ENDED_AT_ONCE)
        self._parts.stopping = True
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        await asyncio.sleep(self._parts.settings.notice_seconds)
        self._parts.drain.begin()
        self.should_exit = True


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:  # It does not exist for every platform.
        return None
    return uvloop.new_event_loop
