"""What a worker process does: import the app once, then play the attempts that come over the pipe."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
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
    """Sends spans and rewards as they come, so that those of a killed attempt are not lost."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = RLock()

    def send(self, message: object) -> None:
        with self._lock:
            self._pipe.send(message)

    def add_span(self, span: Span) -> None:
        self.send(span)

    def add_reward(self, reward: Reward) -> None:
        self.send(reward)


def main() -> None:
    """Work until the pipe says to end; die at once when the runner has died."""
    pipe = Connection(int(sys.argv[1]))
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


def _receive(pipe: Connection, inbox: queue.SimpleQueue[Assignment | None]) -> None:
    """Runs in a thread, so that the runner's death is noticed whatever the attempt does."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
