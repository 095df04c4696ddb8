"""The critic: a model with one number a token in place of the vocabulary, trained on returns by verl's clipped value loss.

The value of a response token is what the critic makes of everything before it: the state in which the token was chosen.
For ``gae`` the whole estimate is made here, by verl's own GAE (arXiv 1506.02438): each turn is an episode that ends with the
turn's reward,

    A_t = Σ_l (γλ)^l δ_{t+l},   δ_t = r_t + γ V_{t+1} − V_t,   return_t = A_t + V_t,

and advantages are whitened over the tokens of a role, so that roles with rewards of different scale learn alike. A
lone token cannot be whitened and gets 0. Row weights scale the policy's loss; the critic learns from all rows alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import compute_gae_advantage_return, compute_value_loss
from verl.workers.utils.padding import no_padding_2_padding

from coterie_trainers.backends.local.ranks import gathered, rank_count
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.local.verl_checkpoint import load_engine, save_engine
from coterie_trainers.backends.local.verl_rows import Row, forward, one_pass, padded, passes_here
from coterie_trainers.backends.local.verl_worker import pass_tokens, value_engine
from coterie_trainers.config import Critic as Settings


class Critic:
    """One policy's critic and its optimiser."""

    def __init__(self, plan: TrainerPlan) -> None:
        """Load the model; its last layer, which gives the values, is new unless the folder has one."""
        self.settings = Settings.model_validate(plan.critic)
        self._engine = value_engine(plan, self.settings)
        self._limit = pass_tokens(plan)
        self._seed = plan.seed
        self._updates = 0

    @property
    def warming_up(self) -> bool:
        """True while only the critic learns."""
        return self._updates < self.settings.warm_up_steps

    def values(self, rows: Sequence[Row]) -> list[list[float]]:
        """The value of the state before each response token of each row."""
        return forward(self._engine, rows, "values", temperature=1.0, limit=self._limit)

    def judge(self, rows: Sequence[Row]) -> None:
        """Give rows their values, and those with rewards their advantages and returns."""
        for row, values in zip(rows, self.values(rows), strict=True):
            row.values = values
        by_role: dict[str, list[Row]] = {}
        for row in rows:
            if row.rewards is not None:
                by_role.setdefault(row.role, []).append(row)
        for some in by_role.values():
            self._estimate(some)

    def update(self, rows: Sequence[Row]) -> dict[str, float]:
        """Gradient steps towards the returns of rows that ``judge`` has seen; gives ``value_…`` figures."""
        taught = [row for row in rows if row.returns is not None and any(wanted is not None for wanted in row.returns)]
        self._updates += 1
        if not taught:
            return {}
        figures = _Figures()
        with self._engine.train_mode():
            for epoch in range(self.settings.epochs):
                for mini_batch in self._mini_batches(taught, epoch):
                    self._gradient_step(mini_batch, figures)
            self._engine.lr_scheduler_step()
        return _Figures.of_all(gathered(figures)).summary() | _fit(taught)

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` needs."""
        save_engine(self._engine, folder, {"updates": self._updates})

    def load(self, folder: Path) -> None:
        """Continue from what ``save`` wrote, bit by bit."""
        self._updates = load_engine(self._engine, folder)["updates"]

    def _estimate(self, rows: Sequence[Row]) -> None:
        mask_RT, rewards_RT, values_RT = (
            padded(rows, column, like=torch.zeros(()))
            for column in (lambda row: row.response_mask, lambda row: row.rewards, lambda row: row.values)
        )
        if mask_RT.sum() > 1:
            advantages_RT, returns_RT = compute_gae_advantage_return(
                token_level_rewards=rewards_RT,
                values=values_RT,
                response_mask=mask_RT,
                gamma=self.settings.discount,
                lam=self.settings.gae_lambda,
            )
        else:
            advantages_RT, returns_RT = torch.zeros_like(mask_RT), rewards_RT
        for row, advantages_T, returns_T in zip(rows, advantages_RT.tolist(), returns_RT.tolist(), strict=True):
            sampled_T = row.response_mask
            row.advantages = [a if sampled else 0.0 for a, sampled in zip(advantages_T, sampled_T, strict=False)]
            row.returns = [g if sampled else None for g, sampled in zip(returns_T, sampled_T, strict=False)]

    def _mini_batches(self, rows: list[Row], epoch: int) -> Iterator[list[Row]]:
        count = min(self.settings.mini_batches, len(rows))
        if count > 1:
            rows = random.Random(f"critic-{self._seed}-{self._updates}-{epoch}").sample(rows, len(rows))
        for number in range(count):
            yield rows[number * len(rows) // count : (number + 1) * len(rows) // count]

    def _gradient_step(self, rows: Sequence[Row], figures: _Figures) -> None:
        self._engine.optimizer_zero_grad()
        tokens = sum(wanted is not None for row in rows for wanted in row.returns or ())
        for group in passes_here(rows, self._limit):

            def loss(
                model_output: dict[str, Any],
                data: TensorDict,
                dp_group: Any,  # noqa: ARG001 - verl passes it
                group: Sequence[Row] = group,
            ) -> tuple[torch.Tensor, dict[str, Any]]:
                predicted_RT = no_padding_2_padding(model_output["values"], data).float()
                taught_RT = padded(group, _is_taught, like=predicted_RT)
                value, clipped = compute_value_loss(
                    vpreds=predicted_RT,
                    returns=padded(group, _returns, like=predicted_RT),
                    values=padded(group, lambda row: row.values, like=predicted_RT),
                    response_mask=taught_RT,
                    cliprange_value=self.settings.value_clip,
                    loss_agg_mode="token-mean",
                    dp_size=rank_count(),
                    batch_num_tokens=tokens,
                )
                figures.loss += float(value.detach()) / rank_count()
                figures.clipped += float(clipped) * float(taught_RT.sum())
                figures.tokens += float(taught_RT.sum())
                return value, {}

            self._engine.forward_backward_batch(one_pass(group, temperature=1.0), loss)
        figures.gradient_norms.append(float(self._engine.optimizer_step()))


@dataclass(slots=True)
class _Figures:
    loss: float = 0.0
    clipped: float = 0.0
    tokens: float = 0.0
    gradient_norms: list[float] = field(default_factory=list)

    @classmethod
    def of_all(cls, parts: Sequence[_Figures]) -> _Figures:
        return cls(
            sum(part.loss for part in parts),
            sum(part.clipped for part in parts),
            sum(part.tokens for part in parts),
            parts[0].gradient_norms,
        )

    def summary(self) -> dict[str, float]:
        steps = len(self.gradient_norms)
        return {
            "value_loss": self.loss / steps,
            "value_grad_norm": sum(self.gradient_norms) / steps,
            "value_clip_fraction": self.clipped / max(self.tokens, 1.0),
        }


def _fit(rows: Sequence[Row]) -> dict[str, float]:
    """How well the values foretold the returns, before the update."""
    pairs = [
        (value, wanted)
        for row in rows
        for value, wanted in zip(row.values or (), row.returns or (), strict=True)
        if wanted is not None
    ]
    values_T, returns_T = np.asarray(pairs, dtype=np.float64).T
    spread = float(returns_T.var())
    figures = {"value_mean": float(values_T.mean()), "return_mean": float(returns_T.mean())}
    if spread > 0:
        figures["value_explained"] = 1.0 - float((returns_T - values_T).var()) / spread
    return figures


def _is_taught(row: Row) -> list[float]:
    return [float(wanted is not None) for wanted in row.returns or ()]


def _returns(row: Row) -> list[float]:
    return [wanted or 0.0 for wanted in row.returns or ()]
