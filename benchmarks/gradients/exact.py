"""The true policy gradient of a task, by enumeration of all plays.

    ∇J_role = Σ_kind 1/kinds · Σ_play p(play) · reward_role(play) · Σ_turns of the role ∇ log π(action | row)

A gradient is a table like the policy's: one number for each (row, action).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradients.tasks import Choice, Play, Row, TeamTask, every_play, random_policy


@dataclass(frozen=True, slots=True)
class Setting:
    """A task, and what counts for a turn of it."""

    task: TeamTask
    own: bool
    """True: each turn counts what its agent's own part was worth; False: what the team achieved."""
    scales: Mapping[str, float]
    """Role → what its reward is multiplied with; 1 where it is not named."""

    def turn_reward(self, play: Play, turn: Choice) -> float:
        """The outcome that counts for a turn."""
        return self.scales.get(turn.role, 1.0) * (play.own[turn.path] if self.own else play.team)

    def role_reward(self, play: Play, role: str) -> float:
        """What the role is to make as large as it can: over its paths, if it acts under several, the sum."""
        paths = {turn.path for turn in play.turns if turn.role == role}
        total = sum(play.own[path] for path in paths) if self.own else play.team
        return self.scales.get(role, 1.0) * total


class Model:
    """A setting with a policy: every play with its probability, and the true gradient."""

    def __init__(self, setting: Setting, *, seed: int = 0, policy: Mapping[Row, NDArray[np.float64]] | None = None):
        self.setting = setting
        self.plays = {kind: list(every_play(setting.task, kind)) for kind in setting.task.kinds}
        turns = [turn for plays in self.plays.values() for play in plays for turn in play.turns]
        rows = {turn.row: turn.actions for turn in turns}
        self.row_number = {row: number for number, row in enumerate(sorted(rows))}
        self.roles = sorted({turn.role for turn in turns})
        self.role_of_row = [row[0] for row in sorted(rows)]
        logits = policy or random_policy(rows, seed=seed)
        self.pi_R_A = np.zeros((len(rows), max(rows.values())))
        for row, values in logits.items():
            weights = np.exp(values - values.max())
            self.pi_R_A[self.row_number[row], : len(values)] = weights / weights.sum()
        self.probability = {
            kind: np.array([self._probability(play) for play in plays]) for kind, plays in self.plays.items()
        }

    def objective(self, role: str) -> float:
        """What a role gets on average over kinds."""
        return float(np.mean([self._mean(kind, self._rewards(kind, role)) for kind in self.plays]))

    def spread(self, role: str) -> float:
        """Standard deviation of what a role gets, within kinds."""
        variances = []
        for kind in self.plays:
            reward_P = self._rewards(kind, role)
            variances.append(self._mean(kind, (reward_P - self._mean(kind, reward_P)) ** 2))
        return float(np.sqrt(np.mean(variances)))

    def gradient(self) -> NDArray[np.float64]:
        """The true gradient, each role's part in units of its reward's ``spread``: ``gradient_R_A``."""
        total_R_A = np.zeros_like(self.pi_R_A)
        units = {role: self.spread(role) for role in self.roles}
        for kind, plays in self.plays.items():
            for play, probability in zip(plays, self.probability[kind], strict=True):
                weights = {
                    role: probability * self.setting.role_reward(play, role) / units[role] for role in self.roles
                }
                self.add_scores(total_R_A, play.turns, [weights[turn.role] for turn in play.turns])
        return total_R_A / len(self.plays)

    def add_scores(self, total_R_A: NDArray[np.float64], turns: Sequence[Choice], weights_N: Sequence[float]) -> None:
        """Add Σ weight · ∇ log π(action | row) to a table."""
        row_N = np.array([self.row_number[turn.row] for turn in turns])
        score_N_A = -self.pi_R_A[row_N]
        score_N_A[np.arange(len(turns)), [turn.action for turn in turns]] += 1.0
        np.add.at(total_R_A, row_N, np.asarray(weights_N)[:, None] * score_N_A)

    def values(self) -> dict[Row, float]:
        """Row → what a turn made there gets on average: what a perfect critic says."""
        total: dict[Row, float] = {}
        visits: dict[Row, float] = {}
        for kind, plays in self.plays.items():
            for play, probability in zip(plays, self.probability[kind], strict=True):
                for turn in play.turns:
                    got = probability * self.setting.turn_reward(play, turn)
                    total[turn.row] = total.get(turn.row, 0.0) + got
                    visits[turn.row] = visits.get(turn.row, 0.0) + probability
        return {row: total[row] / visits[row] for row in total}

    def task_values(self) -> dict[tuple[str, str], float]:
        """(Role, kind) → what a turn of the role gets on average: what a critic says that knows the task only."""
        total: dict[tuple[str, str], float] = {}
        visits: dict[tuple[str, str], float] = {}
        for kind, plays in self.plays.items():
            for play, probability in zip(plays, self.probability[kind], strict=True):
                for turn in play.turns:
                    key = turn.role, kind
                    total[key] = total.get(key, 0.0) + probability * self.setting.turn_reward(play, turn)
                    visits[key] = visits.get(key, 0.0) + probability
        return {key: total[key] / visits[key] for key in total}

    def _probability(self, play: Play) -> float:
        chosen = [self.pi_R_A[self.row_number[turn.row], turn.action] for turn in play.turns]
        return float(play.chance * np.prod(chosen))

    def _rewards(self, kind: str, role: str) -> NDArray[np.float64]:
        return np.array([self.setting.role_reward(play, role) for play in self.plays[kind]])

    def _mean(self, kind: str, value_P: NDArray[np.float64]) -> float:
        return float(self.probability[kind] @ value_P)
