"""``Runner``: leases rollouts from a store, plays many at once in this process or in worker processes, ends each for good."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from coterie.capture.switch import instrument, instrumented, uninstrument
from coterie.errors import ConfigError
from coterie.rollouts import RolloutFunction
from coterie.runner.attempts import Attempts, RunnerStatistics, one_line
from coterie.runner.playing import InProcess, Player
from coterie.runner.processes import ProcessPool
from coterie.store.base import Store
from coterie.vocabulary import new_id

_log = logging.getLogger("coterie.runner")

LEASE_WAIT_SECONDS = 60.0
"""How long one request for work waits for it."""


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
        self._attempts = Attempts(
            store, name=function.name, lease_seconds=lease_seconds, deadline_seconds=deadline_seconds
        )
        self._leasing: asyncio.Task[None] | None = None
        self._instrumented = False

    @property
    def statistics(self) -> RunnerStatistics:
        """What it has done so far."""
        return self._attempts.statistics

    async def __aenter__(self) -> Self:
        if self._leasing is not None:
            raise ConfigError("Runner: it was started before. Make a new one.")
        if not instrumented():
            instrument()
            self._instrumented = True
        self._leasing = asyncio.create_task(self._lease_work(), name=f"{self.worker} leases")
        self._attempts.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def drain(self) -> None:
        """Take no more work, and wait until the attempts that run have ended."""
        await self._stop_leasing()
        await self._attempts.drain()

    async def stop(self) -> None:
        """End the attempts that run, give their rollouts back to the queue, leave no task behind. Safe to call twice."""
        try:
            await self._stop_leasing()
            self._attempts.interrupt()
            await self.drain()
        finally:
            await self._attempts.stop()
            await self._player.close()
            if self._instrumented:
                uninstrument()
                self._instrumented = False

    # Work comes in

    async def _lease_work(self) -> None:
        pause = 0.1
        while True:
            while len(self._attempts) >= self.concurrency:
                self._attempts.slot_free.clear()
                await self._attempts.slot_free.wait()
            try:
                leases = await self.store.lease(
                    self.worker,
                    limit=self.concurrency - len(self._attempts),
                    lease_seconds=self.lease_seconds,
                    wait_seconds=LEASE_WAIT_SECONDS,
                    run_id=self.run_id,
                )
            except Exception as error:  # noqa: BLE001 - whoever waits for the rollouts would wait for ever
                _log.warning("No work could be taken, trying again in %.1f s: %s", pause, one_line(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30.0)
                continue
            pause = 0.1
            for lease in leases:
                self._attempts.begin(lease, self._player)

    async def _stop_leasing(self) -> None:
        if self._leasing is not None:
            self._leasing.cancel()
            await asyncio.gather(self._leasing, return_exceptions=True)


def _check(**values: float) -> None:
    for name, value in values.items():
        least = 1 if name in ("concurrency", "processes") else 0
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise ConfigError(f"Runner: {name} is {value!r}; it must be a number of at least {least}.")
