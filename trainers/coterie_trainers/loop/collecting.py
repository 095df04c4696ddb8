"""Collecting: which tasks a step works on, and the rollouts of the team on them.

A **group** is the rollouts of one drawn task, which are compared with each other. All draws of a run are one stream of groups,
given by the seed alone: draw 1 has as many tasks as a step trains on, then comes draw 2. A **place** is a group's number in it,
from 0.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import Rollout, RolloutState, Task, new_id
from coterie_trainers.draws import draw_tasks
from coterie_trainers.loop.job import Job
from coterie_trainers.runners import tries

Memory = Mapping[str, float | int | str | None]
"""What a collector carries from step to step, as the store keeps figures."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one step trains on."""

    ended: Sequence[Rollout]
    """The rollouts of whole groups, however they ended."""
    episodes: Sequence[Episode]
    """Those that succeeded."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What there is to say about the collection itself."""
    audited: Mapping[tuple[str, str, int | None], float] = field(default_factory=dict)
    """The credit that audits gave: by rollout id, role and turn; without a turn where it is the role's."""

    @property
    def failed(self) -> Sequence[Rollout]:
        """The rollouts that did not succeed."""
        return [rollout for rollout in self.ended if rollout.state is not RolloutState.SUCCEEDED]


class Collector(Protocol):
    """Gives each step its groups: every group to one step, whole, none twice."""

    async def collect(self, step: int, pinned: Mapping[str, int]) -> Collected:
        """The groups of a step. Those that are enqueued for it are pinned to these resource versions."""
        ...

    async def withdraw(self, reason: str) -> None:
        """Take back all groups in flight, as after their weights turned out bad; the next ``collect`` begins them anew."""
        ...

    def memory(self) -> Memory:
        """What the steps to come go on from, to be kept with a step's figures; empty if that is the step's number alone."""
        ...

    def recall(self, memory: Memory) -> None:
        """Go on from what ``memory`` gave."""
        ...


class SyncCollector:
    """The rollouts of a step are all made by the weights that the step before published; between steps nothing runs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stream = GroupStream(job)

    async def collect(self, step: int, pinned: Mapping[str, int]) -> Collected:
        """Play the groups of a step's own draw, and wait for all of them."""
        size = self.stream.per_step
        places = range((step - 1) * size, step * size)
        rollouts = [rollout for place in places for rollout in self.stream.group(place, step, pinned)]
        await self.job.store.enqueue(rollouts)
        ended = await self.job.store.wait([rollout.id for rollout in rollouts])
        return Collected(ended, await episodes_of(self.job.store, ended))

    async def withdraw(self, reason: str) -> None:
        """Nothing is in flight between steps."""

    def memory(self) -> Memory:
        """Nothing: the step's number says what it draws."""
        return {}

    def recall(self, memory: Memory) -> None:
        """Nothing was remembered."""


class GroupStream:
    """The groups of a run by their places: the same for the same seed, whenever they are asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.session = new_id("s")
        """Tells the rollouts of this process from those that an earlier one left behind."""
        self.per_step = min(job.config.training.tasks_per_step, len(job.splits["train"]))
        """Groups of a draw, and of a step."""
        self._draw = lru_cache(maxsize=8)(self._drawn)

    def group(self, place: int, step: int, pinned: Mapping[str, int]) -> list[Rollout]:
        """New rollouts for a place, asked for by a step."""
        number, index = divmod(place, self.per_step)
        return self.rollouts(self._draw(number + 1)[index], str(number + 1), step, pinned)

    def rollouts(self, task: Task, draw: str, step: int, pinned: Mapping[str, int]) -> list[Rollout]:
        """New rollouts of a task, a group."""
        return [
            Rollout(
                task.id,
                run_id=self.job.run_id,
                group_id=f"{self.job.run_id}/{draw}/{task.id}",
                step=step,
                resources=pinned,
                **tries(self.job.config.runner),
                metadata={"session": self.session},
            )
            for _ in range(self.job.config.training.rollouts_per_task)
        ]

    def _drawn(self, number: int) -> list[Task]:
        config = self.job.config
        return draw_tasks(
            self.job.splits["train"],
            count=self.per_step,
            seed=config.seed,
            step=number,
            balance=config.training.balance,
        )


async def episodes_of(store: Store, ended: Sequence[Rollout]) -> Sequence[Episode]:
    """The episodes of those that succeeded."""
    return await load_episodes(store, [rollout.id for rollout in ended if rollout.state is RolloutState.SUCCEEDED])


async def cancel_leftovers(job: Job) -> None:
    """Withdraw all rollouts of the run that have not ended."""
    for state in (RolloutState.QUEUED, RolloutState.RUNNING):
        async for page in _pages(job.store, job.run_id, state):
            await job.store.cancel([rollout.id for rollout in page], reason="the run was cut off")


async def _pages(store: Store, run_id: str, state: RolloutState) -> AsyncIterator[Sequence[Rollout]]:
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, state=state, after=cursor)
        if page.items:
            yield page.items
        if page.cursor is None:
            return
        cursor = page.cursor
