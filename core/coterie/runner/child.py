"""What a worker process does: import the app once, then play the attempts that come over the pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import RLock, Thread

from coterie.capture.content import ContentRules
from coterie.capture.switch import instrument
from coterie.errors import CoterieError
from coterie.roles import RoleMap
from coterie.runner.playing import Assignment, InProcess, describe
from coterie.vocabulary import Reward, Span


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker process."""

    origin: str
    """Where the rollout function is found, for ``load_app``."""
    roles: RoleMap
    rules: ContentRules


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker process has imported the app."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A worker process cannot work."""

    text: str


@dataclass(frozen=True, slots=True)
class Began:
    """An attempt has begun."""

    root: Span
    """Its root span, not ended yet: should the process be killed, somebody else ends it."""


class _PipeSink:
    """Sends spans and rewards as they come, so that those of a killed attempt are not lost. A full pipe slows the attempt
    down to what the runner takes.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = RLock()
        self._outbox: deque[object] = deque()
        self._sending = False

    def send(self, message: object) -> None:
        with self._lock:
            self._outbox.append(message)
            if self._sending:
                return  # In the middle of itself, from within a garbage collection: the outer one sends it.
            self._sending = True
            try:
                while self._outbox:
                    self._pipe.send(self._outbox.popleft())
            finally:
                self._sending = False

    def add_span(self, span: Span) -> None:
        self.send(span)

    def add_reward(self, reward: Reward) -> None:
        self.send(reward)


def main() -> None:
    """Work until the pipe says to end; die at once when the runner has died."""
    pipe = Connection(int(sys.argv[1]))
    _start_guard(life=int(sys.argv[2]), pipe=pipe)
    sink = _PipeSink(pipe)
    try:
        from coterie.apps import load_app

        setup: Setup = pipe.recv()
        instrument(roles=setup.roles.names, capture_content=setup.rules.capture_content, mask=setup.rules.mask)
        function = load_app(setup.origin)
    except Exception as error:  # noqa: BLE001 - the runner says it, with the attempt
        text = str(error) if isinstance(error, CoterieError) else describe(error)
        sink.send(Broken(f"The worker process could not start: {text}"))
        return
    inbox: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
    Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    sink.send(Ready())
    player = InProcess(function, grace_seconds=0.0, begun=lambda root: sink.send(Began(root)))
    # One loop for all attempts: clients at the top of the app's file stay bound to it.
    with asyncio.Runner() as runner:
        never = runner.get_loop().create_future()
        while (assignment := inbox.get()) is not None:
            sink.send(runner.run(player.play(assignment, sink, None, never)))


def _start_guard(*, life: int, pipe: Connection) -> None:
    """Fork a process that waits for the runner's death and then kills the whole group: what the attempt started as well,
    and also if the attempt holds the interpreter, so that no thread of it would notice anything.
    """
    if os.fork():
        os.close(life)
        return
    # Only the runner's own copies must keep its end of the pipe, and its terminal, open.
    pipe.close()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    while os.read(life, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _receive(pipe: Connection, inbox: queue.SimpleQueue[Assignment | None]) -> None:
    """Runs in a thread, for the pipe must be read while an attempt is played."""
    with contextlib.suppress(EOFError, OSError):  # The runner has died; the guard ends us.
        while True:
            inbox.put(pipe.recv())
