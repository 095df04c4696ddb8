"""Measuring a team: rollouts on held-out tasks, sampled as the team runs and greedy beside it.

The store is the only memory: each evaluation rollout carries ``evaluation`` and ``decoding`` in its metadata, so that a
cut-off evaluation goes on with what is missing, and the report is computed from the store alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.assembly import load_rewards
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import JSON, Mode, Reward, Rollout, RolloutState, Task
from coterie_trainers.progress import Progress

CHUNK = 64
"""Rollouts waited for at once: the progress is told after each."""


class Evaluator:
    """Makes evaluation rollouts of one run."""

    def __init__(self, store: Store, run_id: str, progress: Progress, tries: Mapping[str, Any]) -> None:
        """``tries`` are the fields of a rollout that say how long and how often it is tried."""
        self.store = store
        self.run_id = run_id
        self.progress = progress
        self.tries = tries

    async def measure_test(
        self, evaluation: str, tasks: Sequence[Task], pinned: Mapping[str, int], *, samples: int
    ) -> None:
        """Sampled and greedy rollouts of all test tasks, labelled ``before`` or ``after``; what exists is kept."""
        for decoding, count, sampling in (("sampled", samples, {}), ("greedy", 1, {"temperature": 0.0})):
            label = {"evaluation": evaluation, "decoding": decoding}
            made = await self._made(label)
            missing = [task for task in tasks for _ in range(count - made[task.id])]
            if missing:
                await self.success(
                    missing,
                    pinned,
                    mode=Mode.TEST,
                    samples=1,
                    label=f"held-out test {evaluation}, {decoding}",
                    metadata=label,
                    sampling=sampling,
                )

    async def success(
        self,
        tasks: Sequence[Task],
        pinned: Mapping[str, int],
        *,
        mode: Mode,
        samples: int,
        label: str,
        step: int | None = None,
        metadata: Mapping[str, JSON] | None = None,
        sampling: Mapping[str, JSON] | None = None,
    ) -> float:
        """The share of rollouts whose team reward is at least 1; one that failed counts as not."""
        rollouts = [
            Rollout(
                task.id,
                mode=mode,
                run_id=self.run_id,
                step=step,
                resources=pinned,
                sampling=sampling or {},
                **self.tries,
                metadata=metadata or {},
            )
            for task in tasks
            for _ in range(samples)
        ]
        if mode is Mode.TEST:
            self.progress.stage(label, len(rollouts))
        await self.store.enqueue(rollouts)
        won = 0
        for start in range(0, len(rollouts), CHUNK):
            ids = [rollout.id for rollout in rollouts[start : start + CHUNK]]
            ended = await self.store.wait(ids)
            rewards = await load_rewards(
                self.store, [rollout.id for rollout in ended if rollout.state is RolloutState.SUCCEEDED]
            )
            won += sum(team_reward(each) >= 1.0 for each in rewards.values())
            if mode is Mode.TEST:
                self.progress.advance(len(ids), success=won / (start + len(ids)))
        return won / len(rollouts) if rollouts else 0.0

    async def _made(self, label: Mapping[str, JSON]) -> Counter[str]:
        """How many rollouts of each task this evaluation has already, failed ones included."""
        made: Counter[str] = Counter()
        cursor = None
        while True:
            page = await self.store.list_rollouts(run_id=self.run_id, mode=Mode.TEST, after=cursor)
            made.update(
                rollout.task_id
                for rollout in page.items
                if rollout.state in (RolloutState.SUCCEEDED, RolloutState.DEAD)
                and all(rollout.metadata.get(key) == value for key, value in label.items())
            )
            if page.cursor is None:
                return made
            cursor = page.cursor


def team_reward(rewards: Sequence[Reward], name: str = "reward") -> float:
    """The sum of the rewards of this name that are bound to the whole team."""
    return sum(
        reward.value
        for reward in rewards
        if reward.name == name and reward.role is None and reward.agent_path is None and reward.call_id is None
    )


def team_success(episodes: Sequence[Episode], ended: Sequence[Rollout]) -> float:
    """The share of ended rollouts whose team reward is at least 1."""
    return sum(team_reward(episode.rewards) >= 1.0 for episode in episodes) / max(1, len(ended))
