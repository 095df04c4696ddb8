"""Filling: more groups for a step, until enough of them have something to teach.

DAPO's dynamic sampling (arXiv 2503.14476, section 3.2). A group teaches where some role's rewards on the task are unequal; where all are
equal, every advantage that compares rollouts is 0. Where we depart: DAPO goes on until the batch is full; here
``training.extra_tasks`` bounds how many more tasks a step may draw, so that a team that cannot do any of them ends its steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from coterie_trainers.credit import CreditedTurn
from coterie_trainers.draws import draw_tasks
from coterie_trainers.loop.collecting import Collected, GroupStream, episodes_of
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.learning import Learner


class Filling:
    """Draws more tasks for a step, as many as lack and no more than the configuration allows."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self.job = job
        self.learner = learner
        self.stream = GroupStream(job)

    async def fill(self, collected: Collected, step: int, pinned: Mapping[str, int]) -> Collected:
        """What was collected and what had to be added; its figures say how much (``extra_tasks``, ``teaching_tasks``)."""
        training = self.job.config.training
        if not training.extra_tasks:
            return collected
        added = 0
        while True:
            teaching = len(teaching_tasks(await self.learner.credited(collected)))
            lacking = min(training.tasks_per_step - teaching, training.extra_tasks - added)
            seen = {rollout.task_id for rollout in collected.ended}
            unseen = [task for task in self.job.splits["train"] if task.id not in seen]
            if lacking <= 0 or not unseen:
                break
            # The draws of steps to come have positive numbers.
            tasks = draw_tasks(unseen, count=lacking, seed=self.job.config.seed, step=-step, balance=training.balance)
            rollouts = [rollout for task in tasks for rollout in self.stream.rollouts(task, f"{step}+", step, pinned)]
            await self.job.store.enqueue(rollouts)
            ended = await self.job.store.wait([rollout.id for rollout in rollouts])
            added += len(tasks)
            collected = Collected(
                [*collected.ended, *ended],
                [*collected.episodes, *await episodes_of(self.job.store, ended)],
                collected.figures,
            )
        told = {"extra_tasks": float(added), "teaching_tasks": float(teaching)}
        return Collected(collected.ended, collected.episodes, {**collected.figures, **told})


def teaching_tasks(turns: Sequence[CreditedTurn]) -> set[str]:
    """The tasks on which some role got unequal rewards for turns that can be trained on."""
    rewards: dict[tuple[str, str], set[float]] = defaultdict(set)
    for turn in turns:
        if turn.turn.trainable:
            rewards[turn.sample.task_id, turn.sample.role].add(turn.sample.reward)
    return {task for (task, _), values in rewards.items() if len(values) > 1}
