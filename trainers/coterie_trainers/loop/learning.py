"""Learning: episodes → credited turns → advantages → rows → updates of the policies."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.episodes import Episode
from coterie.vocabulary import Metrics
from coterie_trainers.advantages import Estimate
from coterie_trainers.batches import Batch, build_batch
from coterie_trainers.credit import Credit, CreditedTurn, credited_turns
from coterie_trainers.loop.job import Job


@dataclass(frozen=True, slots=True)
class Lesson:
    """What episodes teach: their turns with credit, and the rows to train on."""

    episodes: Sequence[Episode]
    turns: Sequence[CreditedTurn]
    advantages: NDArray[np.float64]
    """One a turn."""
    batch: Batch

    @property
    def policies(self) -> list[str]:
        """The policies that there are rows for: those that this step trains."""
        return [policy for policy, rows in self.batch.rows.items() if rows]


class Learner:
    """Gives credit and updates the policies."""

    def __init__(self, job: Job, estimate: Estimate) -> None:
        self.job = job
        self.estimate = estimate
        self.credit = Credit(team=job.config.credit.team, local=job.config.credit.local)

    def study(self, episodes: Sequence[Episode]) -> Lesson:
        """Credit, advantages and rows of a step's episodes."""
        turns = credited_turns(episodes, self.credit)
        advantages_N = self.estimate([turn.sample for turn in turns])
        return Lesson(episodes, turns, advantages_N, build_batch(turns, advantages_N, self._policy_of()))

    async def update(self, lesson: Lesson) -> dict[str, float]:
        """Train each policy on its rows; gives the figures of the updates, by policy if there are several."""
        figures: dict[str, float] = {}
        for policy in lesson.policies:
            update = await self.job.backend.update(
                policy, lesson.batch.rows[policy], temperature=self.job.config.sampling.temperature
            )
            prefix = "" if len(lesson.batch.rows) == 1 else f"{policy}/"
            figures |= {f"{prefix}{name}": value for name, value in update.metrics.items()}
        return figures

    def figures(self, lesson: Lesson) -> dict[str, float]:
        """Rewards of the roles, and what became of the turns."""
        rewards = [reward for each in lesson.episodes for reward in each.rewards if reward.name == self.credit.name]
        by_role: dict[str, list[float]] = defaultdict(list)
        for reward in rewards:
            if reward.role is not None:
                by_role[reward.role].append(reward.value)
        figures: dict[str, float] = {
            f"role_reward/{role}": sum(values) / len(values) for role, values in by_role.items()
        }
        batch = lesson.batch
        figures |= {
            "calls": len(lesson.turns),
            "rows": sum(map(len, batch.rows.values())),
            "untrainable": batch.untrainable,
            "zero_advantage": batch.zero_advantage,
            "tokens": sum(sum(row.response_mask) for rows in batch.rows.values() for row in rows),
        }
        calls = Counter(turn.turn.role for turn in lesson.turns)
        return figures | {f"calls/{role}": count for role, count in calls.items()}

    def memory(self, step: int) -> list[Metrics]:
        """What estimators carry to the next step, kept with the step's figures so that a resumed run goes on with it."""
        remembered = self.estimate.remembered()
        values = {name: json.dumps(memory) for name, memory in remembered.items()}
        return [Metrics(self.job.run_id, step, values, stage="credit")] if values else []

    async def recall(self, step: int) -> None:
        """Go on from what estimators carried after this step."""
        for row in await self.job.store.get_metrics(self.job.run_id, stage="credit"):
            if row.step == step:
                self.estimate.recall({name: json.loads(str(memory)) for name, memory in row.values.items()})

    def _policy_of(self) -> dict[str, str] | str:
        """Role → policy, or the one policy that plays all roles."""
        policies = self.job.config.policies
        for name, policy in policies.items():
            if not policy.roles:
                return name
        return {role: name for name, policy in policies.items() for role in policy.roles}
