"""How well an estimator's gradient agrees with the true one, over many batches.

The gradient of a batch of B rollouts is 1/B · Σ_turns advantage · ∇ log π(action | row). A batch is the same number of rollouts
for every group size, so that larger groups mean fewer tasks. Each role's part is measured by itself; for all together the
parts are put side by side, each in units of the role's own reward: divided by its standard deviation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import Sample
from coterie_trainers import advantages
from coterie_trainers.advantages.turn_gae import TurnGae
from gradients.exact import Model
from gradients.tasks import Choice, Play

BLIND = "turn_gae, blind critic"
KNOWN = "known mean"
"""The reward less its true mean over the task's rollouts, by its true deviation: what a group estimates. It is unbiased."""
ESTIMATORS = (
    "transition",
    "rollout",
    "role",
    "role_turn",
    "nested",
    "loo",
    "ema_role",
    "state",
    "state_history",
    "turn_gae",
    BLIND,
    KNOWN,
)
ALL = "all"
"""The parts of all roles, side by side."""
WARM_UP = 10
"""Batches that an estimator with a memory sees before it is measured."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one estimator, at one group size, for one role or all."""

    cosine: float
    """Mean over batches of the cosine between the batch's gradient and the true one."""
    cosine_error: float
    """Standard error of that mean."""
    mean_cosine: float
    """Cosine between the mean gradient over batches and the true one: 1 for an unbiased direction."""
    noise: float
    """Variance of a batch's gradient, in units of the squared length of its mean."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rollouts, as estimators see them."""

    turns: Sequence[Choice]
    samples: Sequence[Sample]
    known_N: NDArray[np.float64]
    """Advantages by the true means and deviations."""
    blind: Sequence[float]
    """What a critic says that knows only task and role."""


def agreements(
    model: Model, group_size: int, *, rollouts: int, batches: int, names: Sequence[str], seed: int
) -> dict[str, dict[str, Agreement]]:
    """Estimator → role or ``ALL`` → how it agrees."""
    draw = _Draws(model, group_size, rollouts=rollouts, seed=seed)
    estimators = {name: _estimator(name) for name in {**dict.fromkeys(names), KNOWN: None}}
    for _ in range(WARM_UP):
        warm = draw.batch()
        for estimator in estimators.values():
            estimator(warm)
    gradients: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for _ in range(batches):
        batch = draw.batch()
        for name, estimator in estimators.items():
            advantages_N = estimator(batch)
            total_R_A = np.zeros_like(model.pi_R_A)
            model.add_scores(total_R_A, batch.turns, advantages_N)
            gradients[name].append(total_R_A / rollouts)
    stacked = {name: np.stack(each) for name, each in gradients.items()}
    true_R_A = model.gradient()
    found: dict[str, dict[str, Agreement]] = {}
    for name in names:
        found[name] = {
            part: _agreement(
                stacked[name][:, rows].reshape(batches, -1),
                stacked[KNOWN][:, rows].reshape(batches, -1),
                true_R_A[rows].ravel(),
            )
            for part, rows in _parts(model).items()
        }
    return found


def _agreement(ours_B_D: NDArray[np.float64], known_B_D: NDArray[np.float64], true_D: NDArray[np.float64]) -> Agreement:
    batches = len(ours_B_D)
    lengths_B = np.linalg.norm(ours_B_D, axis=1)
    cosines_B = (ours_B_D @ true_D) / np.maximum(lengths_B * np.linalg.norm(true_D), 1e-300)
    # What the same batches deviate by when the truth is known tells most of the chance in the mean.
    off_B_D = known_B_D - true_D
    share = float((ours_B_D * off_B_D).sum() / max((off_B_D**2).sum(), 1e-300))
    rest_B_D = ours_B_D - share * off_B_D
    mean_D = rest_B_D.mean(axis=0)
    square = float(mean_D @ mean_D - rest_B_D.var(axis=0, ddof=1).sum() / batches)
    length = max(square, 1e-300) ** 0.5
    return Agreement(
        cosine=float(cosines_B.mean()),
        cosine_error=float(cosines_B.std(ddof=1) / batches**0.5),
        mean_cosine=min(1.0, float(mean_D @ true_D / (length * np.linalg.norm(true_D)))),
        noise=float(ours_B_D.var(axis=0, ddof=1).sum() / length**2),
    )


def _parts(model: Model) -> dict[str, list[int]]:
    parts = {role: [n for n, each in enumerate(model.role_of_row) if each == role] for role in model.roles}
    return parts | {ALL: list(range(len(model.role_of_row)))}


def _estimator(name: str) -> Callable[[Batch], Sequence[float]]:
    if name == KNOWN:
        return lambda batch: batch.known_N
    if name == BLIND:
        return lambda batch: TurnGae()(_valued(batch))
    chosen = advantages.check(name)
    return lambda batch: chosen(batch.samples)


def _valued(batch: Batch) -> list[Sample]:
    return [replace(sample, value=value) for sample, value in zip(batch.samples, batch.blind, strict=True)]


class _Draws:
    """Batches of rollouts, drawn from the model's plays."""

    def __init__(self, model: Model, group_size: int, *, rollouts: int, seed: int) -> None:
        self._model, self._group_size, self._groups = model, group_size, rollouts // group_size
        self._chance = np.random.default_rng(seed)
        self._values, self._task_values = model.values(), model.task_values()
        self._spreads = {role: model.spread(role) for role in model.roles}
        self._prepared = {kind: [self._turns_of(play) for play in plays] for kind, plays in model.plays.items()}
        self._number = 0

    def batch(self) -> Batch:
        turns: list[Choice] = []
        samples: list[Sample] = []
        known: list[float] = []
        blind: list[float] = []
        kinds = list(self._model.plays)
        for group in range(self._groups):
            kind = kinds[int(self._chance.integers(len(kinds)))]
            likely_P = self._model.probability[kind]
            numbers = self._chance.choice(len(likely_P), size=self._group_size, p=likely_P / likely_P.sum())
            for number in numbers:
                self._number += 1
                for step, (turn, index, reward, ends) in enumerate(self._prepared[kind][int(number)]):
                    turns.append(turn)
                    samples.append(
                        Sample(
                            task_id=f"{kind} {group}",
                            rollout_id=str(self._number),
                            role=turn.role,
                            agent_path=turn.path,
                            turn=index,
                            reward=reward,
                            state_key=" ".join(turn.row[2:]) or None,
                            step=step,
                            invocation=str((self._number, turn.invocation)),
                            step_reward=reward if ends else 0.0,
                            value=self._values[turn.row],
                        )
                    )
                    mean = self._task_values[turn.role, kind]
                    known.append((reward - mean) / self._spreads[turn.role])
                    blind.append(mean)
        return Batch(turns, samples, np.array(known), blind)

    def _turns_of(self, play: Play) -> list[tuple[Choice, int, float, bool]]:
        """Each turn with the number of its role's calls before it, its reward, and whether its chain ends."""
        calls: dict[str, int] = defaultdict(int)
        last: Mapping[tuple[str, str], int] = {(turn.role, turn.path): at for at, turn in enumerate(play.turns)}
        prepared = []
        for at, turn in enumerate(play.turns):
            reward = self._model.setting.turn_reward(play, turn)
            prepared.append((turn, calls[turn.role], reward, last[turn.role, turn.path] == at))
            calls[turn.role] += 1
        return prepared
