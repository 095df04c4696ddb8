"""A pool of worker processes that play one attempt at a time each, and are killed when an attempt must end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from threading import Thread
from typing import Any

from coterie import roles
from coterie.capture.content import content_rules
from coterie.errors import BackendError, ConfigError
from coterie.runner.child import Began, Broken, Ready, Setup
from coterie.runner.playing import Assignment, Interruption, Outcome, cut_off
from coterie.scope import SpanSink
from coterie.vocabulary import AttemptState, FailureCause, Reward, Span, SpanStatus, now_ns

_log = logging.getLogger("coterie.runner")

_COMMAND = "from coterie.runner.child import main; main()"
"""Not ``-m``: the messages' classes must be those of the imported module."""
START_SECONDS = 120.0
"""How long a worker process may take to import the app."""
END_SECONDS = 5.0
"""How long an idle one may take to end by itself."""


class ProcessPool:
    """Plays attempts in worker processes; starts one when none is idle, so it has as many as attempts run at once."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._life: Life | None = None

    async def play(
        self,
        assignment: Assignment,
        sink: SpanSink,
        deadline_seconds: float | None,
        interrupted: asyncio.Future[Interruption],
    ) -> Outcome:
        """Play one attempt. The deadline counts from when the process has imported the app."""
        try:
            worker = await self._ready_worker_unless(interrupted)
        except BackendError as error:
            return Outcome(AttemptState.FAILED, FailureCause.ERROR, str(error))
        if worker is None:
            return cut_off(interrupted, None, "had not begun")
        try:
            outcome = worker.begin(assignment, sink)
            either: set[asyncio.Future[Any]] = {outcome, interrupted}
            await asyncio.wait(either, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done():
                ended = outcome.result()
            else:
                ended = cut_off(interrupted, deadline_seconds, "was killed with its worker process")
            if ended.error is not None:
                worker.end_root_span(ended)
            if outcome.done() and worker.alive:
                self._idle.append(worker)
            return ended
        finally:
            worker.release()
            if worker not in self._idle:
                self._all.discard(worker)
                await asyncio.shield(worker.kill())

    async def close(self) -> None:
        """End all processes, with everything that they started."""
        workers, self._all = self._all, set()
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in workers))
        if self._life is not None:
            self._life.close()
            self._life = None

    async def _ready_worker_unless(self, interrupted: asyncio.Future[Interruption]) -> _Worker | None:
        """A worker process that is ready, or None if the attempt was interrupted before it was."""
        starting = asyncio.create_task(self._ready_worker())
        try:
            either: set[asyncio.Future[Any]] = {starting, interrupted}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return starting.result() if starting.done() else None
        finally:
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})

    async def _ready_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            self._all.discard(worker)
        self._life = self._life or Life()
        worker = _Worker(self._origin, self._life)
        self._all.add(worker)
        try:
            await asyncio.wait_for(asyncio.shield(worker.ready), START_SECONDS)
        except BaseException as error:
            self._all.discard(worker)
            await asyncio.shield(worker.kill())
            if isinstance(error, TimeoutError):
                raise BackendError(
                    f"A worker process did not import {self._origin} within {START_SECONDS:g} s."
                ) from None
            raise
        return worker


class Life:
    """A pipe that nobody writes to: its end means to the worker processes that the runner is gone, however it ended."""

    def __init__(self) -> None:
        self.childs_end, self._own_end = os.pipe()

    def close(self) -> None:
        """Release both ends."""
        os.close(self.childs_end)
        os.close(self._own_end)


class _Worker:
    """One worker process, and the thread that reads what it says."""

    def __init__(self, origin: str, life: Life) -> None:
        setup = Setup(origin, roles._role_map, content_rules())
        try:
            pickle.dumps(setup)
        except Exception as error:
            raise ConfigError(
                f"The mask given to coterie.instrument() cannot be sent to worker processes ({error}). Define it at the "
                "top level of a module, or use isolation='none'."
            ) from error
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._outcome: asyncio.Future[Outcome] | None = None
        self._sink: SpanSink | None = None
        self._root: Span | None = None
        self._root_ended: str | None = None
        """The id of the last root span that ended."""
        self._pipe, childs_end = Pipe()
        with childs_end:
            # A session of its own, so that its own children can be killed with it.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-c", _COMMAND, str(childs_end.fileno()), str(life.childs_end)],
                pass_fds=[childs_end.fileno(), life.childs_end],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        Thread(target=self._listen, name=f"coterie worker process {self._process.pid}", daemon=True).start()
        self._pipe.send(setup)

    @property
    def alive(self) -> bool:
        """False once the process has ended or closed its pipe."""
        return not self._gone.done()

    def begin(self, assignment: Assignment, sink: SpanSink) -> asyncio.Future[Outcome]:
        """Start an attempt; the future resolves at its end, also when the process dies."""
        self._outcome = self._loop.create_future()
        self._sink = sink
        self._root = None
        try:
            self._pipe.send(assignment)
        except OSError:
            self._note_death()
        return self._outcome

    def release(self) -> None:
        """Take nothing more for the attempt that was begun."""
        self._outcome = self._sink = None

    def end_root_span(self, outcome: Outcome) -> None:
        """End the attempt's root span in place of a process that cannot any more; the process's own comes first."""
        root, sink = self._root, self._sink
        if root is not None and root.span_id != self._root_ended and sink is not None and outcome.error is not None:
            message = outcome.error.splitlines()[0]
            sink.add_span(replace(root, end_ns=now_ns(), status=SpanStatus.ERROR, status_message=message))

    async def kill(self) -> None:
        """Kill the process and what it started, and wait until it is gone."""
        self._kill_group()
        await asyncio.wait({self._gone}, timeout=END_SECONDS)

    async def end(self) -> None:
        """Let an idle process end, and kill it if it does not."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        await asyncio.wait({self._gone}, timeout=END_SECONDS)
        await self.kill()

    def _listen(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                # Kept here and not by the loop: while the sink is busy the pipe fills up, and the attempt waits.
                if isinstance(message, Span | Reward):
                    self._keep(message)
                else:
                    self._tell(self._take, message)
        except (EOFError, OSError):
            pass
        except Exception:  # noqa: BLE001 - the thread must not end without ending the process
            _log.exception("What worker process %d said could not be read; it is killed.", self._process.pid)
        finally:
            self._kill_group()
            self._process.wait()
            self._pipe.close()
            self._tell(self._note_death)

    def _tell(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(call, *args)

    def _keep(self, item: Span | Reward) -> None:
        sink = self._sink
        if sink is None:
            return
        if isinstance(item, Reward):
            sink.add_reward(item)
            return
        if item.parent_id is None:
            self._root_ended = item.span_id
        sink.add_span(item)

    def _take(self, message: object) -> None:
        match message:
            case Ready():
                if not self.ready.done():
                    self.ready.set_result(None)
            case Broken(text):
                if not self.ready.done():
                    self.ready.set_exception(BackendError(text))
            case Began(root):
                self._root = root
            case Outcome() if self._outcome is not None and not self._outcome.done():
                self._outcome.set_result(message)

    def _note_death(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        text = f"The worker process {self._process.pid} ended unexpectedly, {_how(self._process.returncode)}."
        if not self.ready.done():
            self.ready.set_exception(BackendError(text))
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(Outcome(AttemptState.FAILED, FailureCause.ERROR, text))

    def _kill_group(self) -> None:
        # Until wait() has collected it, its id cannot be given to another process.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"with exit code {code}"
