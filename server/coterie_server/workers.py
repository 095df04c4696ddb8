"""Several processes of the server on one port, and the one that keeps them.

The parent listens and hands the socket to its children; the kernel gives each connection to one of them. It takes no
requests itself: it replaces a child that ends, passes signals on, and waits for the last one.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import FrameType

from prometheus_client.multiprocess import mark_process_dead

from coterie.errors import CoterieError
from coterie_server.serving import ENDED_AT_ONCE, run, write_log
from coterie_server.settings import Settings

logger = logging.getLogger("coterie.server")

START_SECONDS = 60.0
"""How long a child may take until it takes requests."""
PAUSE_SECONDS = 1.0
"""Before a child that ended is replaced."""
EXPLAINED = 2


def run_workers(settings: Settings, listener: socket.socket, ready: Callable[[int | None], None]) -> None:
    """Serve with ``settings.workers`` processes until a signal; ``ready`` is called when the first ones all take requests.

    Exits with the code of a child that could not start, whose own words say why.
    """
    write_log()
    with tempfile.TemporaryDirectory(prefix="coterie-metrics-") as figures:
        _Workers(settings, listener, figures).run(ready)


class _Workers:
    def __init__(self, settings: Settings, listener: socket.socket, figures: str) -> None:
        self._settings = settings
        self._listener = listener
        self._figures = figures
        self._children: list[subprocess.Popen[str]] = []
        self._signals = 0

    def run(self, ready: Callable[[int | None], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        try:
            self._children = [self._start() for _ in range(self._settings.workers)]
            ports = [self._wait_until_ready(child) for child in self._children]
            if not self._signals:
                ready(ports[0])
            while not self._signals:
                time.sleep(0.2)
                self._replace_ended()
            self._wait_for_all()
        finally:
            for child in self._children:
                if child.poll() is None:
                    child.kill()
                child.wait()

    def _start(self) -> subprocess.Popen[str]:
        child = subprocess.Popen(  # noqa: S603 - nothing of it comes from elsewhere
            [sys.executable, "-m", "coterie_server.workers", str(self._listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._listener.fileno()],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._figures},
            text=True,
            # Ctrl-C goes to the parent, which passes it on.
            start_new_session=True,
        )
        assert child.stdin is not None
        # Not as arguments: an address may hold a password, and everybody can read arguments.
        child.stdin.write(self._settings.model_dump_json())
        child.stdin.close()
        return child

    def _wait_until_ready(self, child: subprocess.Popen[str]) -> int | None:
        assert child.stdout is not None
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at and not self._signals:
            if select.select([child.stdout], [], [], 0.2)[0]:
                line = child.stdout.readline().split()
                if line[:1] == ["ready"]:
                    return int(line[1]) if len(line) > 1 else None
                sys.exit(child.wait() or 1)
        if not self._signals:
            logger.error("A process of the server takes no requests after %g s.", START_SECONDS)
            sys.exit(1)
        return None

    def _replace_ended(self) -> None:
        for at, child in enumerate(self._children):
            if child.poll() is None or self._signals:
                continue
            logger.error(
                "Process %d of the server ended with code %s; another takes its place.", child.pid, child.returncode
            )
            mark_process_dead(child.pid, self._figures)  # type: ignore[no-untyped-call]
            time.sleep(PAUSE_SECONDS)
            if not self._signals:
                self._children[at] = self._start()

    def _wait_for_all(self) -> None:
        codes = [child.wait() for child in self._children]
        # One that was still starting had nothing to end.
        bad = [code for code in codes if code not in (0, -signal.SIGTERM)]
        if bad:
            sys.exit(bad[0] if bad[0] > 0 else 1)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        if self._signals > 1:
            os._exit(ENDED_AT_ONCE)


def work() -> None:
    """One process: settings as JSON on stdin, the socket's number as argument, ``ready PORT`` on stdout."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    settings = Settings.model_validate_json(sys.stdin.read())

    def ready(grpc_port: int | None) -> None:
        print("ready", *(() if grpc_port is None else (grpc_port,)), flush=True)  # noqa: T201 - the parent reads it

    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    try:
        run(settings, listener, ready)
    except CoterieError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(EXPLAINED)


def _end_with(parent: int) -> None:
    """Stop when the parent is gone: nobody else would tell."""
    while os.getppid() == parent:
        time.sleep(PAUSE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    work()
