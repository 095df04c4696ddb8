"""Learning: episodes → credited turns → advantages → rows → updates of the policies."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.episodes import Episode
from coterie.errors import MismatchError
from coterie.interfaces import PolicyUpdate
from coterie.vocabulary import Metrics
from coterie_trainers import config, shaping
from coterie_trainers.advantages import Estimate
from coterie_trainers.batches import Batch, build_batch
from coterie_trainers.credit import Credit, CreditedTurn, credited_turns
from coterie_trainers.loop.auditing import with_audits
from coterie_trainers.loop.collecting import Collected
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.unfinished import failed_turns, is_cut, masked, penalised
from coterie_trainers.loop.valuing import valued
from coterie_trainers.policy_map import PolicyMap, Silence
from coterie_trainers.shaping.checking import check_order


@dataclass(frozen=True, slots=True)
class Lesson:
    """What episodes teach: their turns with credit, and the rows to train on."""

    episodes: Sequence[Episode]
    turns: Sequence[CreditedTurn]
    advantages: NDArray[np.float64]
    """One a turn."""
    batch: Batch
    policies: Sequence[str]
    """The policies that learn in this step and that there are rows for."""


def credit_as_set(settings: config.Credit) -> Credit:
    """How rewards count, as the configuration says.

    Raises:
        ConfigError: a shaper does not exist or does not take its settings, or the range is none.
    """
    return Credit(
        team=settings.team, local=settings.local, range=settings.range, shapers=shaping.check(settings.shaping)
    )


class Learner:
    """Gives credit and updates the policies."""

    def __init__(self, job: Job, estimate: Estimate, credit: Credit) -> None:
        self.job = job
        self.estimate = estimate
        self.credit = credit
        self.policies = PolicyMap(job.config)
        self.silence = Silence(self.policies, job.config.policies, patience=job.config.training.stop_after_empty_steps)
        self._compared: set[str] = set()
        """The policies whose log-probs have been compared with the server's."""

    async def credited(self, collected: Collected) -> list[CreditedTurn]:
        """The turns of what was collected, each with the reward that counts for it."""
        unfinished = self.job.config.unfinished
        failed = await failed_turns(self.job.store, collected.failed, unfinished)
        return [*penalised(credited_turns(collected.episodes, self.credit), unfinished), *failed]

    async def study(self, collected: Collected, step: int) -> Lesson:
        """Credit, advantages and rows of what a step collected.

        Raises:
            ConfigError: a role that spoke has no policy, or a policy waits in vain for its roles to speak.
        """
        turns = with_audits(await self.credited(collected), collected.audited)
        for warning in self.silence.heard({turn.turn.role for turn in turns}):
            self.job.progress.warn(warning)
        returns_N: list[float | None] | None = None
        if self.estimate.needs_values:
            turns = await valued(turns, self.policies.trains, self.job.backend)
            returns_N = [None] * len(turns)
        # A turn without a value has no tokens or no critic: nothing is trained on it, and it is nobody's successor.
        seen = [
            place
            for place, turn in enumerate(turns)
            if turn.sample.value is not None or not self.estimate.needs_values_of(turn.sample.role)
        ]
        samples = [turns[place].sample for place in seen]
        advantages_N = np.zeros(len(turns))
        advantages_N[seen] = self.estimate(samples)
        if returns_N is not None:
            for place, foretold in zip(seen, self.estimate.returns(samples), strict=True):
                returns_N[place] = foretold
        batch = build_batch(
            turns,
            advantages_N,
            self.policies.trains,
            masked=masked(turns, self.job.config.unfinished),
            token_level=self.estimate.token_level,
            returns_N=returns_N,
        )
        learning = self.policies.learns(step)
        policies = [policy for policy in self.policies.trained if policy in learning and batch.rows.get(policy)]
        return Lesson(collected.episodes, turns, advantages_N, batch, policies)

    async def update(self, lesson: Lesson) -> dict[str, float]:
        """Train each policy on its rows; gives the figures of the updates, by policy if several are trained.

        Raises:
            MismatchError: a policy's first update shows that its server and its trainer do not compute the same thing.
        """
        figures: dict[str, float] = {}
        for policy in lesson.policies:
            update = await self.job.backend.update(
                policy, lesson.batch.rows[policy], temperature=self.job.config.sampling.temperature
            )
            self._compare(update)
            prefix = "" if len(self.policies.trained) == 1 else f"{policy}/"
            # A role's figures are its own, whichever policy plays it.
            figures |= {
                name if name.startswith("role/") else f"{prefix}{name}": value for name, value in update.metrics.items()
            }
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
            "rows": sum(len(batch.rows[policy]) for policy in lesson.policies),
            "untrainable": batch.untrainable,
            "zero_advantage": batch.zero_advantage,
            "cut": sum(map(is_cut, lesson.turns)),
            "masked": batch.masked,
            "tokens": sum(sum(row.response_mask) for policy in lesson.policies for row in batch.rows[policy]),
        }
        for name, shaper in self.credit.shapers.items():
            figures[f"shaping/{name}/wrong_order"] = check_order(shaper, lesson.episodes, self.credit).share
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

    def _compare(self, update: PolicyUpdate) -> None:
        """Refuse to go on where the first update was on log-probs that are not the trainer's."""
        divergence, bound = update.metrics.get("mismatch_kl"), self.job.config.training.first_mismatch
        if update.policy in self._compared or divergence is None:
            return
        self._compared.add(update.policy)
        if not abs(divergence) <= bound:
            raise MismatchError(
                f"policies.{update.policy}: in its first update the server's log-probabilities are not the trainer's: "
                f"mismatch_kl is {divergence:.3g} nats a token, and training.first_mismatch allows {bound:g}. Both have "
                f"the same weights then, so they compute differently: look for sampling parameters that the server "
                f"applies and the trainer does not know (sampling.top_p below 1, a temperature that the team sets by "
                f"itself), backend.server_args such as a quantization, or a model that vLLM and transformers read "
                f"differently. Raise training.first_mismatch if it is wanted."
            )
