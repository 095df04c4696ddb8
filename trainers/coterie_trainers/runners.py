"""Who plays a run's rollouts: a runner in this process, or runners elsewhere that lease them from the store."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator
from typing import Any

from coterie.rollouts import RolloutFunction
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.vocabulary import FailureCause, RetryPolicy, RolloutState, Run
from coterie_trainers.progress import Progress
from coterie_trainers.sections import Runner as RunnerConfig


def tries(config: RunnerConfig) -> dict[str, Any]:
    """The fields of a rollout that say how long and how often it is tried."""
    limits = dict.fromkeys(FailureCause, config.max_attempts) | {
        FailureCause.LEASE_EXPIRED: max(config.lost_attempts, config.max_attempts)
    }
    return {
        "deadline_seconds": config.deadline_seconds,
        "max_attempts": config.max_attempts + limits[FailureCause.LEASE_EXPIRED] - 1,
        "retry": RetryPolicy(by_cause=limits),
    }


@contextlib.asynccontextmanager
async def runner_here(
    store: Store, function: RolloutFunction[..., object], run: Run, config: RunnerConfig
) -> AsyncIterator[None]:
    """Play the run's rollouts in this process within the block."""
    async with Runner(store, function, concurrency=config.concurrency, run_id=run.id):
        yield


@contextlib.asynccontextmanager
async def runners_elsewhere(
    store: Store, run: Run, config: RunnerConfig, *, app: str, url: str, progress: Progress
) -> AsyncIterator[None]:
    """Leave the run's rollouts to others within the block; says how to start them, and warns while nobody comes."""
    command = shlex.join(["coterie", "run", app, "--store", url, "--run", run.id])
    progress.note(f"rollouts wait for runners, on any machine: {command}")
    watching = asyncio.create_task(_warn_while_nobody_comes(store, run, config.patience_seconds, command, progress))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _warn_while_nobody_comes(
    store: Store, run: Run, patience_seconds: float, command: str, progress: Progress
) -> None:
    """Warn each time that rollouts have waited for so long and none is being played."""
    waiting: str | None = None
    while True:
        await asyncio.sleep(patience_seconds)
        queued = await store.list_rollouts(run_id=run.id, state=RolloutState.QUEUED, limit=1)
        running = await store.list_rollouts(run_id=run.id, state=RolloutState.RUNNING, limit=1)
        first = queued.items[0].id if queued.items and not running.items else None
        if first is not None and first == waiting:
            progress.warn(f"No runner takes rollouts of this run ({first} has waited long). Start one: {command}")
        waiting = first
