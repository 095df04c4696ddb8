"""Several policies on one model in one trainer: each is an adapter, and one at a time is in verl's engine.

What belongs to a policy (its adapter's tensors, optimiser state, learning rate, count of updates, critic) is put aside
when another one's turn comes. That gives the same bits as a trainer each would, for the memory of one model.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coterie_trainers.backends.local.scheduled_rate import ScheduledRate
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.local.verl_checkpoint import load_state, save_state
from coterie_trainers.backends.local.verl_critic import Critic
from coterie_trainers.backends.local.verl_engine import PolicyTrainer
from coterie_trainers.backends.local.verl_lora import put, read_adapter, trained_tensors, write_adapter
from coterie_trainers.config import Policy


@dataclass(slots=True)
class _Own:
    """What belongs to one policy."""

    settings: Policy
    tensors: dict[str, torch.Tensor]
    optimizer_state: Any
    rate: ScheduledRate
    critic: Critic | None
    updates: int = 0


class AdapterTrainer:
    """The operations of ``PolicyTrainer``, each for one of several policies."""

    def __init__(self, plan: TrainerPlan) -> None:
        """Load the model; every policy begins with the same adapter, which changes nothing yet."""
        self._plan = plan
        self._trainer = trainer = PolicyTrainer(plan)
        self._engine = trainer.engine
        tensors = {name: tensor.detach().clone() for name, tensor in trained_tensors(self._engine).items()}
        self._own: dict[str, _Own] = {}
        for number, (name, section) in enumerate(plan.policies.items()):
            settings = Policy.model_validate(section)
            rate = ScheduledRate(self._engine.optimizer, settings.learning_rate, settings.schedule)
            critic = trainer.critic if number == 0 or trainer.critic is None else Critic(plan)
            self._own[name] = _Own(settings, tensors, defaultdict(dict), rate, critic)
        self._current = next(iter(self._own))
        self._take_in(self._own[self._current])

    def update(self, policy: str, **arguments: Any) -> dict[str, Any]:
        """As ``PolicyTrainer.update``."""
        return self._turn_to(policy).update(**arguments)

    def values(self, policy: str, **arguments: Any) -> dict[str, Any]:
        """As ``PolicyTrainer.values``."""
        return self._turn_to(policy).values(**arguments)

    def write_adapter(self, policy: str, folder: str) -> dict[str, Any]:
        """Write a policy's adapter as a PEFT folder, for its server."""
        self._turn_to(policy)
        write_adapter(self._engine, Path(folder), base=self._plan.model)
        return {}

    def save(self, policy: str, folder: str) -> dict[str, Any]:
        """Write ``folder/model``, a PEFT folder, and ``folder/trainer``, what else goes on from here."""
        trainer = self._turn_to(policy)
        write_adapter(self._engine, Path(folder) / "model", base=self._plan.model)
        state = Path(folder) / "trainer"
        state.mkdir(exist_ok=True)
        more = {"random": self._engine.checkpoint_manager.get_rng_state(), "updates": trainer.updates}
        save_state(self._engine, state, more)
        if trainer.critic is not None:
            trainer.critic.save(Path(folder) / "critic")
        return {}

    def load(self, policy: str, folder: str) -> dict[str, Any]:
        """Continue from what ``save`` wrote, bit by bit."""
        trainer = self._turn_to(policy)
        read_adapter(self._engine, Path(folder) / "model")
        state = load_state(self._engine, Path(folder) / "trainer")
        if trainer.critic is not None:
            trainer.critic.load(Path(folder) / "critic")
        self._engine.checkpoint_manager.load_rng_state(state["random"])
        trainer.updates = state["updates"]
        return {}

    def _turn_to(self, policy: str) -> PolicyTrainer:
        if policy != self._current:
            self._put_aside(self._own[self._current])
            self._take_in(self._own[policy])
            self._current = policy
        return self._trainer

    def _put_aside(self, own: _Own) -> None:
        own.tensors = {name: tensor.detach().clone() for name, tensor in trained_tensors(self._engine).items()}
        own.optimizer_state = self._engine.optimizer.state
        own.updates = self._trainer.updates

    def _take_in(self, own: _Own) -> None:
        engine = self._engine
        put(engine, own.tensors)
        engine.optimizer.state = own.optimizer_state
        for parameters in engine.optimizer.param_groups:
            parameters.update(betas=tuple(own.settings.betas), weight_decay=own.settings.weight_decay)
        engine.lr_scheduler = own.rate
        own.rate.apply()
        engine.optimizer_config.clip_grad = own.settings.clip_grad
        self._trainer.critic = own.critic
        self._trainer.updates = own.updates
