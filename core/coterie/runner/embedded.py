"""``Runner``: leases rollouts from a store, plays many at once in this process or in worker processes, ends each for good."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from coterie.capture.switch import instrument, instrumented, uninstrument
from coterie.errors import ConfigError, CoterieError, LeaseLostError, NotFoundError, StoreUnavailableError
from coterie.rollouts import RolloutFunction
from coterie.runner.pins import Pins
from coterie.runner.playing import Assignment, InProcess, Interruption, Outcome, Player
from coterie.runner.processes import ProcessPool
from coterie.runner.sink import AttemptSink
from coterie.runner.trainability import why_untrainable
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, FailureCause, Lease, Mode, new_id

_log = logging.getLogger("coterie.runner")

LEASE_WAIT_SECONDS = 60.0
"""How long one request for work waits for it."""
FLUSH_SECONDS = 5.0
"""How often the spans of attempts that still run are written."""
FINISH_TRIES = 8
"""How often the end of an attempt is written before its result is given up, over about 20 seconds."""


class Isolation(StrEnum):
    """Where rollout functions run."""

    NONE = "none"
    """In this process: async ones as tasks of its event loop, sync ones in threads. A deadline ends the attempt, but
    Python cannot kill a thread, nor a task that swallows its cancellation: such are abandoned, and reported."""
    PROCESS = "process"
    """In worker processes, an attempt at a time each. A deadline kills the process, whatever it does."""


@dataclass(frozen=True, slots=True)
class RunnerStatistics:
    """What a runner has done so far, in attempts."""

    leased: int = 0
    succeeded: int = 0
    failed: int = 0
    """Among them those that ran into their deadline."""
    deadline: int = 0
    cancelled: int = 0
    """Given back when the runner stopped, or ended because the rollout was withdrawn or the lease lost."""
    abandoned: int = 0
    """Attempts that ended while their thread or task went on, because nothing can end it."""
    untrainable: int = 0
    """Attempts of mode train that succeeded without a trainable call."""
    unwritten: int = 0
    """Attempts whose end the store did not take: lost leases, and a store that failed."""


class Runner:
    """Plays queued rollouts while its block lasts.

    ``async with Runner(store, team, concurrency=32): …`` starts it; leaving the block stops it: attempts that still
    run are ended and their rollouts go back into the queue. ``await runner.drain()`` before lets them end in peace.

    Args:
        store: Where the work comes from and the results go.
        function: What ``@coterie.rollout`` made, or ``load_app`` loaded.
        concurrency: How many attempts run at once.
        deadline_seconds: How long an attempt may take, unless its rollout says otherwise; None means for ever.
        lease_seconds: After so long without a heartbeat of this runner another one may take its work.
        worker: This runner's name in the store.
        isolation: Where the function runs.
        processes: How many worker processes with ``isolation="process"``; it limits ``concurrency``.
        run_id: Take only rollouts of this run.
        grace_seconds: How long a cancelled async function may take to clean up.

    Raises:
        ConfigError: an argument is out of its range, or the function cannot be found by a worker process.
    """

    def __init__(
        self,
        store: Store,
        function: RolloutFunction[..., Any],
        *,
        concurrency: int = 32,
        deadline_seconds: float | None = None,
        lease_seconds: float = 60.0,
        worker: str | None = None,
        isolation: Isolation | str = Isolation.NONE,
        processes: int | None = None,
        run_id: str | None = None,
        grace_seconds: float = 5.0,
    ) -> None:
        _check(concurrency=concurrency, lease_seconds=lease_seconds, grace_seconds=grace_seconds)
        _check(processes=1 if processes is None else processes)
        _check(deadline_seconds=1 if deadline_seconds is None else deadline_seconds)
        if isolation not in list(Isolation):
            raise ConfigError(f"Runner: isolation is {isolation!r}; allowed are 'none' and 'process'.")
        if not isinstance(function, RolloutFunction):
            raise ConfigError(f"Runner: {function!r} is no rollout function. Mark it with @coterie.rollout.")
        self.store = store
        self.function = function
        self.worker = worker or f"{socket.gethostname()}-{os.getpid()}-{new_id('w')[-4:]}"
        self.deadline_seconds = deadline_seconds
        self.lease_seconds = lease_seconds
        self.run_id = run_id
        self._player: Player
        if isolation == Isolation.PROCESS:
            self.concurrency = min(concurrency, processes or max(4, os.cpu_count() or 1))
            self._player = ProcessPool(function.origin)
        else:
            self.concurrency = concurrency
            self._player = InProcess(function, grace_seconds=grace_seconds)
        self._pins = Pins(store)
        self._statistics = RunnerStatistics()
        self._running: dict[str, _Running] = {}
        self._slot_free = asyncio.Event()
        self._leasing: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._instrumented = False
        self._told: set[str] = set()

    @property
    def statistics(self) -> RunnerStatistics:
        """What it has done so far."""
        return self._statistics

    async def __aenter__(self) -> Self:
        if self._leasing is not None:
            raise ConfigError("Runner: it was started before. Make a new one.")
        if not instrumented():
            instrument()
            self._instrumented = True
        self._leasing = asyncio.create_task(self._lease_work(), name=f"{self.worker} leases")
        self._background = [
            asyncio.create_task(self._send_heartbeats(), name=f"{self.worker} heartbeats"),
            asyncio.create_task(self._flush_spans(), name=f"{self.worker} flushes"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def drain(self) -> None:
        """Take no more work, and wait until the attempts that run have ended."""
        await self._stop_leasing()
        while self._running:
            await asyncio.wait([running.task for running in self._running.values()])

    async def stop(self) -> None:
        """End the attempts that run, give their rollouts back to the queue, leave no task behind. Safe to call twice."""
        try:
            await self._stop_leasing()
            for running in self._running.values():
                running.interrupt(Interruption.STOPPED)
            await self.drain()
        finally:
            left = [*self._background, *(running.task for running in self._running.values())]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._player.close()
            if self._instrumented:
                uninstrument()
                self._instrumented = False

    # Work comes in

    async def _lease_work(self) -> None:
        pause = 0.1
        while True:
            while len(self._running) >= self.concurrency:
                self._slot_free.clear()
                await self._slot_free.wait()
            try:
                leases = await self.store.lease(
                    self.worker,
                    limit=self.concurrency - len(self._running),
                    lease_seconds=self.lease_seconds,
                    wait_seconds=LEASE_WAIT_SECONDS,
                    run_id=self.run_id,
                )
            except Exception as error:  # noqa: BLE001 - whoever waits for the rollouts would wait for ever
                _log.warning("No work could be taken, trying again in %.1f s: %s", pause, _one_line(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30.0)
                continue
            pause = 0.1
            for lease in leases:
                self._begin(lease)

    def _begin(self, lease: Lease) -> None:
        running = _Running(lease)
        self._running[lease.attempt.id] = running
        self._count(leased=1)
        running.task = asyncio.create_task(self._attempt(running), name=f"attempt {lease.attempt.id}")

    async def _stop_leasing(self) -> None:
        if self._leasing is not None:
            self._leasing.cancel()
            await asyncio.gather(self._leasing, return_exceptions=True)

    # One attempt

    async def _attempt(self, running: _Running) -> None:
        lease, sink = running.lease, running.sink
        try:
            outcome = await self._outcome(running)
            warnings = self._warnings(running, outcome)
            running.ending = True
            await self._finish(lease, outcome, warnings, sink)
        except Exception:  # noqa: BLE001 - whatever was not foreseen must not end silently
            _log.exception("Attempt %s could not be ended; its lease will run out.", lease.attempt.id)
            self._count(unwritten=1)
        finally:
            del self._running[lease.attempt.id]
            self._slot_free.set()

    async def _outcome(self, running: _Running) -> Outcome:
        rollout, task = running.lease.rollout, running.lease.task
        try:
            pinned = await self._pins.resolve(rollout)
        except CoterieError as error:
            # Another try finds the same resources, but a store may be back.
            retry = isinstance(error, StoreUnavailableError)
            return Outcome(AttemptState.FAILED, FailureCause.ERROR, str(error), retry=retry)
        running.endpoints = tuple(pinned.endpoints.values())
        assignment = Assignment(
            rollout_id=rollout.id,
            attempt_id=running.lease.attempt.id,
            mode=rollout.mode,
            task=task,
            endpoints=pinned.endpoints,
            prompts=pinned.prompts,
            sampling=rollout.sampling,
        )
        deadline = rollout.deadline_seconds if rollout.deadline_seconds is not None else self.deadline_seconds
        return await self._player.play(assignment, running.sink, deadline, running.interrupted)

    def _warnings(self, running: _Running, outcome: Outcome) -> Sequence[str]:
        warnings = []
        if outcome.abandoned:
            self._count(abandoned=1)
            warnings.append(outcome.abandoned)
            self._tell(
                f"abandoned {self.function.name}", f"Rollout function {self.function.name!r}: {outcome.abandoned}"
            )
        if outcome.state is AttemptState.SUCCEEDED and running.lease.rollout.mode is Mode.TRAIN:
            finding = why_untrainable(running.sink.calls, running.endpoints)
            if finding is not None:
                self._count(untrainable=1)
                warnings.append(finding.text)
                self._tell(
                    finding.cause,
                    f"A train attempt ended without a trainable call (rollout {running.lease.rollout.id}): "
                    f"{finding.text} Each such attempt carries this warning; it is logged once.",
                )
        return warnings

    async def _finish(self, lease: Lease, outcome: Outcome, warnings: Sequence[str], sink: AttemptSink) -> None:
        spans, rewards = sink.close()
        pause = 0.1
        for tries_left in reversed(range(FINISH_TRIES)):
            try:
                await self.store.finish(
                    lease.attempt.id,
                    outcome.state,
                    cause=outcome.cause,
                    error=outcome.error,
                    warnings=warnings,
                    spans=spans,
                    rewards=rewards,
                    retry=outcome.retry,
                )
            except LeaseLostError as error:
                _log.info("%s", error)
                self._count(unwritten=1)
                return
            except StoreUnavailableError as error:
                if not tries_left:
                    raise
                _log.warning("Attempt %s could not be ended yet: %s", lease.attempt.id, _one_line(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)
            except NotFoundError:
                raise
            except CoterieError as error:
                if not (spans or rewards):
                    raise
                # The store refuses a span or reward. The attempt ends all the same, and says what it lost.
                lost = f"{len(spans)} spans and {len(rewards)} rewards could not be stored: {error}"
                _log.error("Attempt %s: %s", lease.attempt.id, lost)
                outcome = Outcome(AttemptState.FAILED, FailureCause.ERROR, lost)
                spans, rewards = (), ()
            else:
                ended = {AttemptState.SUCCEEDED: "succeeded", AttemptState.FAILED: "failed"}
                self._count(
                    **{ended.get(outcome.state, "cancelled"): 1}, deadline=outcome.cause is FailureCause.DEADLINE
                )
                return

    # What goes on meanwhile

    async def _send_heartbeats(self) -> None:
        interval = self.lease_seconds / 3
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval)
            late = time.monotonic() - before - interval
            if late > interval:
                self._tell(
                    "blocked",
                    f"The event loop was blocked for {late:.0f} s, so heartbeats and deadlines came late. If the "
                    f"rollout function {self.function.name!r} is an 'async def' that blocks, make it a plain 'def', "
                    "or use isolation='process'.",
                )
            ids = [id_ for id_, running in self._running.items() if not running.ending]
            if not ids:
                continue
            try:
                held = await self.store.heartbeat(ids, lease_seconds=self.lease_seconds)
            except Exception as error:  # noqa: BLE001 - the next heartbeat may succeed
                _log.warning("A heartbeat for %d attempts failed: %s", len(ids), _one_line(error))
                continue
            for id_ in set(ids).difference(held):
                if id_ in self._running:
                    self._running[id_].interrupt(Interruption.LOST)

    async def _flush_spans(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            sinks = [running.sink for running in self._running.values() if not running.ending]
            waiting = [(sink, sink.unwritten()) for sink in sinks]
            spans = [span for _, some in waiting for span in some]
            if not spans:
                continue
            try:
                await self.store.add_spans(spans)
            except Exception as error:  # noqa: BLE001 - they stay in the sinks, and go with the end of the attempt
                _log.warning("%d spans could not be written yet: %s", len(spans), _one_line(error))
                continue
            for sink, some in waiting:
                sink.written(len(some))

    def _count(self, **more: int) -> None:
        now = self._statistics
        self._statistics = replace(now, **{name: getattr(now, name) + count for name, count in more.items()})

    def _tell(self, cause: str, text: str) -> None:
        if cause not in self._told:
            self._told.add(cause)
            _log.warning("%s", text)


@dataclass(slots=True, eq=False)
class _Running:
    """An attempt that runs."""

    lease: Lease
    sink: AttemptSink = field(default_factory=AttemptSink)
    interrupted: asyncio.Future[Interruption] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    task: asyncio.Task[None] = field(init=False)
    endpoints: Sequence[Any] = ()
    ending: bool = False
    """True once its result is being written: from then on the lease may not be held any more."""

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)


def _check(**values: float) -> None:
    for name, value in values.items():
        least = 1 if name in ("concurrency", "processes") else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise ConfigError(f"Runner: {name} is {value!r}; it must be a number of at least {least}.")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
