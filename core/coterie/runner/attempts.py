"""Attempts under way: each is played, its lease kept, its spans written meanwhile, its end written for good."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.errors import CoterieError, LeaseLostError, NotFoundError, StoreUnavailableError
from coterie.runner.pins import Pins
from coterie.runner.playing import Assignment, Interruption, Outcome, Player
from coterie.runner.sink import AttemptSink
from coterie.runner.trainability import why_untrainable
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, FailureCause, Lease, Mode

_log = logging.getLogger("coterie.runner")

FLUSH_SECONDS = 5.0
"""How often spans and rewards of attempts that still run are written."""
FINISH_TRIES = 8
"""How often the end of an attempt is written before its result is given up, over about 20 seconds."""


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


class Attempts:
    """The attempts that one worker holds.

    Args:
        store: Where their spans, rewards and ends go.
        name: What they run, for the log.
        lease_seconds: After so long without a heartbeat another worker may take them.
        deadline_seconds: How long one may take, unless its rollout says otherwise; None means for ever.
        flush_seconds: How often what they recorded is written while they run.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        lease_seconds: float = 60.0,
        deadline_seconds: float | None = None,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.store = store
        self.name = name
        self.lease_seconds = lease_seconds
        self.deadline_seconds = deadline_seconds
        self.flush_seconds = flush_seconds
        self.slot_free = asyncio.Event()
        """Set whenever an attempt has ended."""
        self._pins = Pins(store)
        self._statistics = RunnerStatistics()
        self._running: dict[str, _Running] = {}
        self._background: list[asyncio.Task[None]] = []
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def statistics(self) -> RunnerStatistics:
        """What has been done so far."""
        return self._statistics

    def start(self) -> None:
        """Send heartbeats and write spans from now on."""
        self._background = [
            asyncio.create_task(self._send_heartbeats(), name=f"{self.name} heartbeats"),
            asyncio.create_task(self._flush_regularly(), name=f"{self.name} flushes"),
        ]

    def begin(self, lease: Lease, player: Player) -> asyncio.Task[bool]:
        """Play a leased attempt to its end. The task ends when the end is written, with False if the store did not
        take it; it raises nothing.
        """
        running = _Running(lease, player)
        self._running[lease.attempt.id] = running
        self._count(leased=1)
        running.task = asyncio.create_task(self._attempt(running), name=f"attempt {lease.attempt.id}")
        return running.task

    async def flush(self) -> None:
        """Write what the attempts that run have recorded so far."""
        waiting = [running.sink.waiting() for running in self._running.values() if not running.ending]
        spans = [span for one in waiting for span in one.spans]
        rewards = [reward for one in waiting for reward in one.rewards]
        try:
            if spans:
                await self.store.add_spans(spans)
            if rewards:
                await self.store.add_rewards(rewards)
        except Exception as error:  # noqa: BLE001 - they stay in the sinks, and go with the end of the attempt
            _log.warning("%d spans, %d rewards could not be written yet: %s", len(spans), len(rewards), one_line(error))
            return
        for one in waiting:
            one.written()

    async def drain(self) -> None:
        """Wait until the attempts that run have ended."""
        while self._running:
            await asyncio.wait([running.task for running in self._running.values()])

    def interrupt(self) -> None:
        """End the attempts that run; their rollouts go back to the queue."""
        for running in self._running.values():
            running.interrupt(Interruption.STOPPED)

    async def stop(self) -> None:
        """Leave no task behind. Safe to call twice."""
        left = [*self._background, *(running.task for running in self._running.values())]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # One attempt

    async def _attempt(self, running: _Running) -> bool:
        lease, sink = running.lease, running.sink
        try:
            outcome = await self._outcome(running)
            warnings = self._warnings(running, outcome)
            running.ending = True
            return await self._finish(lease, outcome, warnings, sink)
        except Exception:  # noqa: BLE001 - whatever was not foreseen must not end silently
            _log.exception("Attempt %s could not be ended; its lease will run out.", lease.attempt.id)
            self._count(unwritten=1)
            return False
        finally:
            del self._running[lease.attempt.id]
            self.slot_free.set()

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
        return await running.player.play(assignment, running.sink, deadline, running.interrupted)

    def _warnings(self, running: _Running, outcome: Outcome) -> Sequence[str]:
        warnings = []
        if outcome.abandoned:
            self._count(abandoned=1)
            warnings.append(outcome.abandoned)
            self._tell(f"abandoned {self.name}", f"Rollout function {self.name!r}: {outcome.abandoned}")
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

    async def _finish(self, lease: Lease, outcome: Outcome, warnings: Sequence[str], sink: AttemptSink) -> bool:
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
                return False
            except StoreUnavailableError as error:
                if not tries_left:
                    raise
                _log.warning("Attempt %s could not be ended yet: %s", lease.attempt.id, one_line(error))
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
                return True
        raise AssertionError("the last try either returns or raises")

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
                    f"rollout function {self.name!r} is an 'async def' that blocks, make it a plain 'def', "
                    "or use isolation='process'.",
                )
            ids = [id_ for id_, running in self._running.items() if not running.ending]
            if not ids:
                continue
            try:
                held = await self.store.heartbeat(ids, lease_seconds=self.lease_seconds)
            except Exception as error:  # noqa: BLE001 - the next heartbeat may succeed
                _log.warning("A heartbeat for %d attempts failed: %s", len(ids), one_line(error))
                continue
            for id_ in set(ids).difference(held):
                if id_ in self._running:
                    self._running[id_].interrupt(Interruption.LOST)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.flush_seconds)
            await self.flush()

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
    player: Player
    sink: AttemptSink = field(default_factory=AttemptSink)
    interrupted: asyncio.Future[Interruption] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    task: asyncio.Task[bool] = field(init=False)
    endpoints: Sequence[Any] = ()
    ending: bool = False
    """True once its result is being written: from then on the lease may not be held any more."""

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)


def one_line(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
