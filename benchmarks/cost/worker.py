"""The process in which one framework runs with one instrumentor: commands come as JSON lines, figures go back as such.

Each instrumentor has a process of its own, since they patch for the whole process. It answers on what was its standard
output; what frameworks print goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from cost.instrumentors import ATTEMPT, MADE_BEFORE, Counter, session, switch_on
from cost.programs import Program, Run, import_framework, program_of
from cost.records import records_in
from coterie.scope import AttemptScope, attempt_scope
from coterie.testing.sink import ListSink
from coterie.vocabulary import Mode, Reward, Span, new_id


def serve(framework: str, instrumentor: str, base_url: str) -> None:
    """Obey commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    stay_here()
    import_framework(framework)
    if (framework, instrumentor) in MADE_BEFORE:
        program = program_of(framework, base_url)
        counter = switch_on(instrumentor, framework)
    else:
        counter = switch_on(instrumentor, framework)
        program = program_of(framework, base_url)
    worker = Worker(program, counter, in_attempts=instrumentor == ATTEMPT)
    with session(instrumentor):
        for line in sys.stdin:
            command = json.loads(line)
            answers.write(json.dumps(getattr(worker, command.pop("do"))(**command)) + "\n")
            answers.flush()


class Worker:
    """What the process can be told to do."""

    def __init__(self, program: Program, counter: Counter, *, in_attempts: bool) -> None:
        self._program = program
        self._counter = counter
        self._in_attempts = in_attempts
        self._process = psutil.Process()
        self._attempt: AttemptScope | None = None

    def measure(self, program: str, runs: int, *, long: bool = False) -> dict[str, Any]:
        """Run a program some times: seconds of CPU of the whole process, and of wall time, each run.

        Within attempts each run is one of its own, or with ``long`` all are a part of one.
        """
        run: Run = getattr(self._program, program)
        cpu, wall = [], []
        for _ in range(runs):
            with self._scope(long):
                wall_start, cpu_start = time.perf_counter(), time.process_time()
                run()
                cpu.append(time.process_time() - cpu_start)
                wall.append(time.perf_counter() - wall_start)
        return {"cpu": cpu, "wall": wall, "spans": self._counter.count}

    def memory(self) -> dict[str, int]:
        """Resident bytes after a garbage collection, and objects that the collector knows."""
        gc.collect()
        return {"rss": self._process.memory_info().rss, "objects": len(gc.get_objects())}

    def records(self, program: str) -> dict[str, int]:
        """What the spans of one run hold."""
        run: Run = getattr(self._program, program)
        sink = ListSink()
        self._counter.kept = []
        with attempt_scope(_scope(sink)) if self._in_attempts else contextlib.nullcontext():
            run()
        kept, self._counter.kept = self._counter.kept, None
        return records_in(sink.spans if self._in_attempts else kept or [])

    def profile(self, program: str, runs: int, file: str) -> dict[str, str]:
        """Write a cProfile of some runs."""
        import cProfile

        run: Run = getattr(self._program, program)
        profiler = cProfile.Profile(time.process_time)
        with self._scope(False):
            profiler.runcall(_repeat, run, runs)
        profiler.dump_stats(file)
        return {"file": file}

    @contextlib.contextmanager
    def _scope(self, long: bool) -> Iterator[None]:
        if not self._in_attempts:
            yield
            return
        if not long or self._attempt is None:
            self._attempt = _scope(_Dropping())
        with attempt_scope(self._attempt):
            yield


class _Dropping:
    """A ``SpanSink`` that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def add_span(self, span: Span) -> None:  # noqa: ARG002
        self.count += 1

    def add_reward(self, reward: Reward) -> None:
        pass


def _scope(sink: Any) -> AttemptScope:
    return AttemptScope(rollout_id=new_id("ro"), attempt_id=new_id("at"), mode=Mode.TRAIN, sink=sink)


def _repeat(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()


def stay_here() -> None:
    """Refuse every connection that leaves this machine: the measured program must not depend on anyone's service."""
    connect = socket.socket.connect

    def local_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            print(f"refused to connect to {address}", file=sys.stderr)
            raise OSError(
                f"benchmarks/overhead.py: a connection to {address} was refused; nothing may leave this machine."
            )
        connect(self, address)

    socket.socket.connect = local_connect  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(*sys.argv[1:])
