"""``Runner``: leases rollouts from a store, plays many at once in this process or in worker processes, ends each for good."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from coterie.capture.switch import instrument, instrumented, uninstrument
from coterie.errors import ConfigError
from coterie.rollouts import RolloutFunction
from coterie.runner.attempts import Attempts, Ended, RunnerStatistics
from coterie.runner.heap import heap_set_aside
from coterie.runner.playing import InProcess, Player
from coterie.runner.processes import ProcessPool
from coterie.runner.reach import Pauses
from coterie.runner.sink import MEMORY_BYTES
from coterie.store.base import Store
from coterie.vocabulary import new_id

LEASE_WAIT_SECONDS = 60.0
"""How long one request for work waits for it."""
STOP_SECONDS = 30.0
"""How long the ends of stopped attempts are tried; then their leases must run out."""


class Isolation(StrEnum):
    """Where rollout functions run."""

    NONE = "none"
    """In this process: async ones as tasks of its event loop, sync ones in threads. A deadline ends the attempt, but
    Python cannot kill a thread, nor a task that swallows its cancellation: such are abandoned, and reported."""
    PROCESS = "process"
    """In worker processes, an attempt at a time each. A deadline kills the process, whatever it does."""


class Runner:
    """Plays queued rollouts while its block lasts.

    ``async with Runner(store, team, concurrency=32): …`` starts it; leaving the block stops it: attempts that still
    run are ended and their rollouts go back into the queue. ``await runner.drain()`` before lets them end in peace.

    Args:
        store: Where the work comes from and the results go.
        function: What ``@coterie.rollout`` made, or ``load_app`` loaded.
        concurrency: How many attempts run at once. While they are brief up to a quarter more are leased ahead.
        deadline_seconds: How long an attempt may take, unless its rollout says otherwise; None means for ever.
        lease_seconds: After so long without a heartbeat of this runner another one may take its work.
        worker: This runner's name in the store.
        isolation: Where the function runs.
        processes: How many worker processes with ``isolation="process"``; it limits ``concurrency``.
        run_id: Take only rollouts of this run.
        grace_seconds: How long a cancelled async function may take to clean up.
        idle_seconds: Take no more work after there was none for so long and nothing runs; None means to wait for ever.
        gateway: The address of a ``coterie serve`` through whose gateway agents call the models of their rollouts; None
            means straight to their endpoints, which must be within reach.
        memory_bytes: How much of what running attempts recorded may wait in memory; more waits on disk.
        on_end: Called at the end of each attempt.

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
        idle_seconds: float | None = None,
        gateway: str | None = None,
        memory_bytes: int = MEMORY_BYTES,
        on_end: Callable[[Ended], None] | None = None,
    ) -> None:
        _check(concurrency=concurrency, lease_seconds=lease_seconds, grace_seconds=grace_seconds)
        _check(idle_seconds=0 if idle_seconds is None else idle_seconds)
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
        self.idle_seconds = idle_seconds
        self._player: Player
        if isolation == Isolation.PROCESS:
            self.concurrency = min(concurrency, processes or max(4, os.cpu_count() or 1))
            self._player = ProcessPool(function.origin)
        else:
            self.concurrency = concurrency
            self._player = InProcess(function, grace_seconds=grace_seconds)
        self._attempts = Attempts(
            store,
            name=function.name,
            lease_seconds=lease_seconds,
            at_once=self.concurrency,
            deadline_seconds=deadline_seconds,
            gateway=gateway,
            memory_bytes=memory_bytes,
            on_end=on_end,
        )
        self._leasing: asyncio.Task[None] | None = None
        self._heap = ExitStack()
        self._instrumented = False

    @property
    def statistics(self) -> RunnerStatistics:
        """What it has done so far."""
        return self._attempts.statistics

    @property
    def running(self) -> int:
        """How many attempts run now."""
        return len(self._attempts)

    @property
    def waiting(self) -> int:
        """How many spans and rewards of running attempts are not written yet."""
        return self._attempts.waiting

    @property
    def away_seconds(self) -> float | None:
        """For how long the store has been away; None while it answers."""
        return self._attempts.reach.away_seconds

    async def __aenter__(self) -> Self:
        if self._leasing is not None:
            raise ConfigError("Runner: it was started before. Make a new one.")
        if not instrumented():
            instrument()
            self._instrumented = True
        self._heap.enter_context(heap_set_aside())
        self._leasing = asyncio.create_task(self._lease_work(), name=f"{self.worker} leases")
        self._attempts.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def idle(self) -> None:
        """Wait until there was no work for ``idle_seconds``."""
        if self._leasing is not None:
            await asyncio.wait({self._leasing})

    async def drain(self) -> None:
        """Take no more work, and wait until the attempts that run have ended."""
        await self._stop_leasing()
        await self._attempts.drain()

    async def give_back(self) -> None:
        """Take no more work, end the attempts that run, and give their rollouts back to the queue."""
        await self._stop_leasing()
        self._attempts.interrupt()
        await self._attempts.drain()

    async def stop(self, *, within_seconds: float = STOP_SECONDS) -> None:
        """Give back what runs, leave no task behind. Safe to call twice.

        What the store does not take ``within_seconds``, because it is away, is left to the leases.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_seconds):
                    await self.give_back()
        finally:
            await self._attempts.stop()
            await self._player.close()
            self._heap.close()
            if self._instrumented:
                uninstrument()
                self._instrumented = False

    # Work comes in

    async def _lease_work(self) -> None:
        attempts = self._attempts
        pauses, request_id, again = Pauses(attempts.reach), new_id("le"), False
        while True:
            while (free := self._free) < 1:
                attempts.room.clear()
                await attempts.room.wait()
            quiet = not len(attempts)
            try:
                leases = await self.store.lease(
                    self.worker,
                    limit=free,
                    lease_seconds=self.lease_seconds,
                    wait_seconds=LEASE_WAIT_SECONDS if self.idle_seconds is None else self.idle_seconds,
                    run_id=self.run_id,
                    request_id=request_id,
                )
            except Exception as error:  # noqa: BLE001 - whoever waits for the rollouts would wait for ever
                attempts.reach.failed(error)
                await pauses.take()
                again = True
                continue
            attempts.reach.answered()
            for lease in leases:
                attempts.begin(lease, self._player)
            if again and leases:
                # The store may have given them to the call whose answer was lost, and much of their time may be over.
                await attempts.beat()
            pauses, request_id, again = Pauses(attempts.reach), new_id("le"), False
            if leases or self.idle_seconds is None:
                continue
            if quiet:
                return
            if len(attempts):
                # Whatever ends may put its rollout back into the queue.
                attempts.room.clear()
                await attempts.room.wait()

    @property
    def _free(self) -> int:
        """How many more attempts may be leased: none while the store takes less than is recorded, or while it does not take
        the ends of those before. More than can be played at once only while they are brief, so that the next is there when
        one ends; work that takes long would wait here while another runner might play it.
        """
        if self._attempts.behind or len(self._attempts) >= 2 * self.concurrency:
            return 0
        ahead = math.ceil(self.concurrency / 4) if self._attempts.brief else 0
        return self.concurrency + ahead - self._attempts.held

    async def _stop_leasing(self) -> None:
        if self._leasing is not None:
            self._leasing.cancel()
            await asyncio.gather(self._leasing, return_exceptions=True)


def _check(**values: float) -> None:
    for name, value in values.items():
        least = 1 if name in ("concurrency", "processes") else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise ConfigError(f"Runner: {name} is {value!r}; it must be a number of at least {least}.")
