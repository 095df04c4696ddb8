"""Attempts under way: each is played, its lease kept, its spans written meanwhile, its end written for good.

While the store is away attempts go on. Their ends are tried until the store takes them, or says that the lease was
lost meanwhile: leases run out by the store's clock alone, so the runner asks, and does not judge by its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.errors import CoterieError, LeaseLostError, NotFoundError, StoreError, StoreUnavailableError
from coterie.prompts.versions import PromptVersion
from coterie.replays import Recorded
from coterie.runner.pins import Pinned, Pins, at_one_server
from coterie.runner.playing import Assignment, Interruption, Outcome, Player, cut_off
from coterie.runner.prompt_use import why_unused
from coterie.runner.reach import Pauses, Reach
from coterie.runner.recorded import load_recorded
from coterie.runner.sink import MEMORY_BYTES, AttemptSink, Backlog
from coterie.runner.trainability import CallCount, why_untrainable
from coterie.runner.turns import Turns
from coterie.runner.writing import Writing
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, FailureCause, Lease, Mode, Span

_log = logging.getLogger("coterie.runner")

FLUSH_SECONDS = 5.0
"""How often spans and rewards of attempts that still run are written, unless a full portion waits earlier."""
AWAY_SECONDS = 2.0
"""How often a heartbeat is tried while the store is away: when it is back, leases may be about to run out."""
BRIEF_SECONDS = 2.0
"""Attempts that take less are brief: for them the way to the store and back counts."""


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
    """Attempts whose end the store did not take: lost leases, and a store that stayed away."""
    refused: int = 0
    """Spans and rewards that the store refused for good; their attempts failed."""
    spilled: int = 0
    """Spans and rewards that waited on disk for a time, because the store took less than was recorded."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How one attempt ended, for who watches a runner."""

    lease: Lease
    outcome: Outcome
    seconds: float
    """From its beginning to its end."""
    written: bool
    """False if the store did not take its end."""


class Attempts:
    """The attempts that one worker holds.

    Args:
        store: Where their spans, rewards and ends go.
        name: What they run, for the log.
        lease_seconds: After so long without a heartbeat another worker may take them.
        at_once: How many are played at once; those begun above that wait for their turn. None means all.
        deadline_seconds: How long one may take, unless its rollout says otherwise; None means for ever.
        flush_seconds: How often what they recorded is written while they run.
        patience_seconds: How long an attempt waits for a store that is away, to begin or to end; None means until it is
            back.
        gateway: The address of a server through whose gateway they call their models; None means straight.
        memory_bytes: How much of what they recorded may wait in memory; the rest waits on disk.
        on_end: Called at the end of each.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        lease_seconds: float = 60.0,
        at_once: int | None = None,
        deadline_seconds: float | None = None,
        flush_seconds: float = FLUSH_SECONDS,
        patience_seconds: float | None = None,
        gateway: str | None = None,
        memory_bytes: int = MEMORY_BYTES,
        on_end: Callable[[Ended], None] | None = None,
    ) -> None:
        self.store = store
        self.name = name
        self.lease_seconds = lease_seconds
        self.deadline_seconds = deadline_seconds
        self.flush_seconds = flush_seconds
        self.patience_seconds = patience_seconds
        self.reach = Reach()
        self.room = asyncio.Event()
        """Set whenever an attempt ends or its end is written, and when waiting spans were written."""
        self._on_end = on_end
        self._pins = Pins(store, gateway=gateway)
        self._backlog = Backlog(memory_bytes=memory_bytes)
        self._writing = Writing(store, self.reach)
        self._turns = None if at_once is None else Turns(at_once)
        self._usual_seconds: float | None = None
        self._statistics = RunnerStatistics()
        self._running: dict[str, _Running] = {}
        self._background: list[asyncio.Task[None]] = []
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def held(self) -> int:
        """How many run still, or wait for their turn; of the others the end is being written."""
        return sum(not running.ending for running in self._running.values())

    @property
    def brief(self) -> bool:
        """True while attempts usually take less than ``BRIEF_SECONDS``, as far as is known yet."""
        return self._usual_seconds is not None and self._usual_seconds < BRIEF_SECONDS

    @property
    def statistics(self) -> RunnerStatistics:
        """What has been done so far."""
        return replace(self._statistics, spilled=self._backlog.spilled)

    @property
    def waiting(self) -> int:
        """Spans and rewards that are not written yet."""
        return self._backlog.waiting

    @property
    def behind(self) -> bool:
        """True while the store takes less than the attempts record: then there should be no more of them."""
        return self._backlog.behind

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
        running = _Running(lease, player, self._backlog.open())
        self._running[lease.attempt.id] = running
        self._count(leased=1)
        running.task = asyncio.create_task(self._attempt(running), name=f"attempt {lease.attempt.id}")
        return running.task

    async def flush(self) -> bool:
        """Write what the attempts that run have recorded so far; False if the store did not take it."""
        written = await self._writing.flush([running.sink for running in self._running.values() if not running.ending])
        self.room.set()
        return written

    async def beat(self) -> None:
        """Send a heartbeat for all attempts in one call. Those whose lease was lost are ended."""
        # The end of an attempt may have to wait for the store, and its lease must hold until then.
        ids = list(self._running)
        if not ids:
            return
        try:
            async with asyncio.timeout(max(self.lease_seconds / 3, 1.0)):
                held = await self.store.heartbeat(ids, lease_seconds=self.lease_seconds)
        except Exception as error:  # noqa: BLE001 - the next heartbeat may succeed
            self.reach.failed(error)
            return
        self.reach.answered()
        for id_ in set(ids).difference(held):
            if id_ in self._running:
                self._running[id_].interrupt(Interruption.LOST)

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
        if self._running:
            _log.error(
                "%d attempts were left without an end; their rollouts go back into the queue when their leases run out.",
                len(self._running),
            )
        left = [*self._background, *(running.task for running in self._running.values())]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # One attempt

    async def _attempt(self, running: _Running) -> bool:
        lease, written = running.lease, False
        try:
            outcome = await self._outcome(running)
            warnings = await self._warnings(running, outcome)
            running.ending = True
            self.room.set()
            outcome, written = await self._finish(running, outcome, warnings)
            self._tell_end(Ended(lease, outcome, time.monotonic() - running.began, written))
        except Exception:  # noqa: BLE001 - whatever was not foreseen must not end silently
            _log.exception("Attempt %s could not be ended; its lease will run out.", lease.attempt.id)
        finally:
            if not written:
                self._count(unwritten=1)
            self._backlog.close(running.sink)
            del self._running[lease.attempt.id]
            self.room.set()
        return written

    async def _outcome(self, running: _Running) -> Outcome:
        rollout, task = running.lease.rollout, running.lease.task
        try:
            pinned, recorded = await self._looked_up(running)
        except CoterieError as error:
            if running.interrupted.done():
                return cut_off(running.interrupted, None, "had not begun")
            # Another try finds the same resources, but a store may be back.
            retry = isinstance(error, StoreUnavailableError)
            return Outcome(AttemptState.FAILED, FailureCause.ERROR, str(error), retry=retry)
        endpoints = {name: at_one_server(endpoint, rollout.id) for name, endpoint in pinned.endpoints.items()}
        running.endpoints = tuple(endpoints.values())
        running.prompts = pinned.prompts
        assignment = Assignment(
            rollout_id=rollout.id,
            attempt_id=running.lease.attempt.id,
            mode=rollout.mode,
            task=task,
            endpoints=endpoints,
            prompts=pinned.prompts,
            sampling=rollout.sampling,
            agents=pinned.agents,
            recorded=recorded,
        )
        deadline = rollout.deadline_seconds if rollout.deadline_seconds is not None else self.deadline_seconds
        if self._turns is None:
            return await running.player.play(assignment, running.sink, deadline, running.interrupted)
        if not await self._turns.take(running.interrupted):
            return cut_off(running.interrupted, None, "had not begun")
        try:
            running.began = time.monotonic()
            return await running.player.play(assignment, running.sink, deadline, running.interrupted)
        finally:
            self._turns.give_back()
            self._learn_seconds(time.monotonic() - running.began)

    def _learn_seconds(self, seconds: float) -> None:
        usual = seconds if self._usual_seconds is None else self._usual_seconds
        self._usual_seconds = 0.75 * usual + 0.25 * seconds

    async def _looked_up(self, running: _Running) -> tuple[Pinned, Recorded | None]:
        """What the attempt is pinned to, and the recording that it plays again."""
        pauses, rollout = Pauses(self.reach), running.lease.rollout
        while True:
            try:
                return await self._pins.resolve(rollout), await load_recorded(self.store, rollout)
            except StoreUnavailableError as error:
                self.reach.failed(error)
                if running.interrupted.done() or self._patience_ends(running.began):
                    raise
                await pauses.take()

    async def _warnings(self, running: _Running, outcome: Outcome) -> Sequence[str]:
        warnings = []
        if outcome.abandoned:
            self._count(abandoned=1)
            warnings.append(outcome.abandoned)
            self._tell(f"abandoned {self.name}", f"Rollout function {self.name!r}: {outcome.abandoned}")
        if running.sink.calls.diverged is not None:
            warnings.append(running.sink.calls.diverged)
            self._tell("diverged", f"{running.sink.calls.diverged} It is no evidence. This is logged once.")
        if outcome.state is AttemptState.SUCCEEDED and running.lease.rollout.mode is Mode.TRAIN:
            finding = why_untrainable(running.sink.calls, running.endpoints)
            if finding is not None and not await self._trainable_elsewhere(running.lease.attempt.id):
                self._count(untrainable=1)
                warnings.append(finding.text)
                self._tell(
                    finding.cause,
                    f"A train attempt ended without a trainable call (rollout {running.lease.rollout.id}): "
                    f"{finding.text} Each such attempt carries this warning; it is logged once.",
                )
        if outcome.state is AttemptState.SUCCEEDED:
            for prompt in await self._unused_prompts(running):
                warnings.append(why_unused(running.sink.prompts, prompt))
                self._tell(
                    f"unused {prompt.label}",
                    f"A pinned prompt was not used (rollout {running.lease.rollout.id}): {warnings[-1]} Each such "
                    "attempt carries this warning; it is logged once.",
                )
        return warnings

    async def _trainable_elsewhere(self, attempt_id: str) -> bool:
        """True if the store has a trainable call of the attempt that this process did not see."""
        count = CallCount()
        for span in await self._seen_elsewhere(attempt_id):
            count.add(span)
        return bool(count.trainable)

    async def _unused_prompts(self, running: _Running) -> Sequence[PromptVersion]:
        """The pinned prompts that no call of an attempt used, not even one that this process did not see."""
        use = running.sink.prompts
        if use.unused(running.prompts):
            for span in await self._seen_elsewhere(running.lease.attempt.id):
                use.add(span)
        return use.unused(running.prompts)

    async def _seen_elsewhere(self, attempt_id: str) -> Sequence[Span]:
        """The spans of an attempt that the store has already: the gateway records calls of agents in other processes and
        languages, and has them on disk before their answers end.
        """
        try:
            return (await self.store.get_spans([attempt_id])).get(attempt_id, ())
        except StoreError as error:
            _log.warning("Whether attempt %s had a call at the gateway could not be read: %s", attempt_id, error)
            return ()

    async def _finish(self, running: _Running, outcome: Outcome, warnings: Sequence[str]) -> tuple[Outcome, bool]:
        """Write the end until the store takes it; gives what was written, and False if the lease was lost."""
        attempt_id, sink = running.lease.attempt.id, running.sink
        pauses, began = Pauses(self.reach), time.monotonic()
        while True:
            try:
                last = await self._writing.all_but_last(sink)
                outcome = _complete(outcome, sink)
                try:
                    await self.store.finish(
                        attempt_id,
                        outcome.state,
                        cause=outcome.cause,
                        error=outcome.error,
                        warnings=warnings,
                        spans=last.spans,
                        rewards=last.rewards,
                        retry=outcome.retry,
                    )
                except (LeaseLostError, StoreUnavailableError):
                    raise
                except CoterieError:
                    if not last.items:
                        raise
                    await self._writing.sort_out(last)
                    continue
            except StoreUnavailableError as error:
                self.reach.failed(error)
                if self._patience_ends(began):
                    raise
                await pauses.take()
            except (LeaseLostError, NotFoundError) as error:
                _log.warning("The result of attempt %s is dropped: %s", attempt_id, error)
                return outcome, False
            else:
                break
        self.reach.answered()
        ended = {AttemptState.SUCCEEDED: "succeeded", AttemptState.FAILED: "failed"}.get(outcome.state, "cancelled")
        self._count(**{ended: 1}, deadline=outcome.cause is FailureCause.DEADLINE, refused=sink.refused)
        return outcome, True

    def _tell_end(self, end: Ended) -> None:
        if self._on_end is not None:
            try:
                self._on_end(end)
            except Exception:  # noqa: BLE001 - who watches must not disturb the work
                _log.exception("The end of attempt %s could not be told.", end.lease.attempt.id)

    def _patience_ends(self, began: float) -> bool:
        return self.patience_seconds is not None and time.monotonic() - began >= self.patience_seconds

    # What goes on meanwhile

    async def _send_heartbeats(self) -> None:
        interval = self.lease_seconds / 3
        while True:
            pause = interval if self.reach.away_seconds is None else min(interval, AWAY_SECONDS)
            before = time.monotonic()
            await self.reach.pause(pause)
            self._tell_if_blocked(time.monotonic() - before - pause, interval)
            await self.beat()

    def _tell_if_blocked(self, late: float, interval: float) -> None:
        if late > interval:
            self._tell(
                "blocked",
                f"The event loop was blocked for {late:.0f} s, so heartbeats and deadlines came late. If the "
                f"rollout function {self.name!r} is an 'async def' that blocks, make it a plain 'def', "
                "or use isolation='process'.",
            )

    async def _flush_regularly(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.flush_seconds):
                    await self._backlog.much.wait()
            self._backlog.much.clear()
            if not await self.flush():
                await self.reach.pause(AWAY_SECONDS)

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
    sink: AttemptSink
    began: float = field(default_factory=time.monotonic)
    interrupted: asyncio.Future[Interruption] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    task: asyncio.Task[bool] = field(init=False)
    endpoints: Sequence[Any] = ()
    prompts: Sequence[PromptVersion] = ()
    ending: bool = False
    """True once its result is being written: from then on nothing interrupts it."""

    def interrupt(self, why: Interruption) -> None:
        if not self.interrupted.done():
            self.interrupted.set_result(why)


def _complete(outcome: Outcome, sink: AttemptSink) -> Outcome:
    """The outcome, or that the attempt failed because not all of what it recorded could be kept."""
    if not sink.refused or outcome.state is not AttemptState.SUCCEEDED:
        return outcome
    lost = f"{sink.refused} of its spans and rewards could not be stored: {sink.refusal}"
    return Outcome(AttemptState.FAILED, FailureCause.ERROR, lost, abandoned=outcome.abandoned)
