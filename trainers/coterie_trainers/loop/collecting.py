"""Collecting: which tasks a step works on, and the rollouts of the team on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import Rollout, RolloutState, new_id
from coterie_trainers.draws import draw_tasks
from coterie_trainers.loop.job import Job
from coterie_trainers.runners import tries


@dataclass(frozen=True, slots=True)
class Collected:
    """What one step trains on."""

    ended: Sequence[Rollout]
    """The rollouts of whole groups, however they ended."""
    episodes: Sequence[Episode]
    """Those that succeeded."""

    @property
    def failed(self) -> Sequence[Rollout]:
        """The rollouts that did not succeed."""
        return [rollout for rollout in self.ended if rollout.state is not RolloutState.SUCCEEDED]


class Collector:
    """Synchronous collection: the rollouts of a step are all made by the weights that the step before published."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.session = new_id("s")
        """Tells the rollouts of this process from those that an earlier one left behind."""

    async def collect(self, step: int, pinned: Mapping[str, int]) -> Collected:
        """Play the groups of a step, pinned to these resource versions, and wait for all of them."""
        job = self.job
        rollouts = self._groups(step, pinned)
        await job.store.enqueue(rollouts)
        ended = await job.store.wait([rollout.id for rollout in rollouts])
        return Collected(ended, await _episodes(job.store, ended))

    def _groups(self, step: int, pinned: Mapping[str, int]) -> list[Rollout]:
        config = self.job.config
        tasks = draw_tasks(
            self.job.splits["train"],
            count=config.training.tasks_per_step,
            seed=config.seed,
            step=step,
            balance=config.training.balance,
        )
        return [
            Rollout(
                task.id,
                run_id=self.job.run_id,
                group_id=f"{self.job.run_id}/{step}/{task.id}",
                step=step,
                resources=pinned,
                **tries(config.runner),
                metadata={"session": self.session},
            )
            for task in tasks
            for _ in range(config.training.rollouts_per_task)
        ]


async def cancel_leftovers(job: Job) -> None:
    """Withdraw all rollouts of the run that have not ended."""
    for state in (RolloutState.QUEUED, RolloutState.RUNNING):
        async for page in _pages(job.store, job.run_id, state):
            await job.store.cancel([rollout.id for rollout in page], reason="the run was cut off")


async def _episodes(store: Store, ended: Sequence[Rollout]) -> Sequence[Episode]:
    return await load_episodes(store, [rollout.id for rollout in ended if rollout.state is RolloutState.SUCCEEDED])


async def _pages(store: Store, run_id: str, state: RolloutState) -> AsyncIterator[Sequence[Rollout]]:
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, state=state, after=cursor)
        if page.items:
            yield page.items
        if page.cursor is None:
            return
        cursor = page.cursor
