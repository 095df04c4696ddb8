"""A policy in training: verl's FSDP2 engine with the loss of ``verl_loss.py``, fed with plain rows.

Runs in the trainer process. verl is imported here and in the ``verl_*`` modules beside this one, nowhere else.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tensordict import TensorDict
from verl.workers.utils.padding import no_padding_2_padding

from coterie_trainers.backends.local.ranks import gathered, rank, rank_count
from coterie_trainers.backends.local.scheduled_rate import ScheduledRate
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.local.update_figures import UpdateFigures
from coterie_trainers.backends.local.verl_checkpoint import load_state, load_weights, save_state
from coterie_trainers.backends.local.verl_critic import Critic
from coterie_trainers.backends.local.verl_loss import PassFigures, PolicyLoss, Share
from coterie_trainers.backends.local.verl_rows import Row, forward, one_pass, passes_here, rows_of
from coterie_trainers.backends.local.verl_worker import pass_tokens, policy_engine, reference_engine
from coterie_trainers.backends.local.weight_sender import send_weights
from coterie_trainers.config import Loss, Schedule

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")
_WEIGHTS = "model.safetensors"


class PolicyTrainer:
    """One policy's weights and optimiser."""

    def __init__(self, plan: TrainerPlan) -> None:
        """Load the model and make the optimiser."""
        torch.manual_seed(plan.seed)
        self._plan = plan
        self.updates = 0
        """Updates so far."""
        self.engine = policy_engine(plan)
        self.loss = PolicyLoss(Loss.model_validate(plan.loss), horizon=plan.horizon)
        self.engine.lr_scheduler = ScheduledRate(
            self.engine.optimizer, plan.learning_rate, Schedule.model_validate(plan.schedule)
        )
        self._reference = reference_engine(plan, self.engine) if self.loss.settings.kl else None
        self.critic = Critic(plan) if plan.critic is not None else None
        self.limit = pass_tokens(plan)
        self._warm_up()

    def update(self, columns: Mapping[str, list[Any]], temperature: float) -> dict[str, Any]:
        """``loss.epochs`` passes over the rows, each in ``loss.mini_batches`` gradient steps; before them the critic's.

        ``mismatch_*`` and ``correction_*`` compare the rollout with the weights as they were before the first step: in a forward
        pass of its own with ``correction.proximal: actor``, else in that of the first step. With one mini-batch that
        is every row, with more those of the first.
        """
        began = time.monotonic()
        rows = rows_of(columns)
        metrics: dict[str, float] = {}
        learns = True
        if self.critic is not None:
            learns = not self.critic.warming_up
            self.critic.judge(rows)
            metrics |= self.critic.update(rows) | {"critic_warm_up": float(not learns)}
        metrics |= self._update_policy(rows, temperature) if learns else {"loss": 0.0, "grad_norm": 0.0}
        self.updates += 1
        return {"metrics": metrics | {"seconds": time.monotonic() - began}}

    def values(self, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        """What the critic makes of the state before each response token of each row."""
        if self.critic is None:
            raise ValueError("the policy has no critic")
        return {"values": self.critic.values(rows_of(columns))}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight whole, under its name in the Hugging Face folder. All ranks must go through all of them."""
        yield from self.engine.get_per_tensor_param()[0]

    def largest_weight(self) -> int:
        """Bytes of the largest weight."""
        state = self.engine.module.state_dict()
        return max(int(tensor.numel()) * int(tensor.element_size()) for tensor in state.values())

    def send_weights(self, seconds: float) -> dict[str, Any]:
        """Send all weights to the server, which takes them meanwhile; raises after ``seconds`` of its silence."""
        send_weights(
            self.weights(),
            largest=self.largest_weight(),
            address=self._plan.weight_socket,
            prefix=self._plan.shared_memory,
            over_ipc=not self._plan.on_cpu,
            seconds=seconds,
        )
        return {}

    def save(self, folder: str) -> dict[str, Any]:
        """Write ``folder/model``, an ordinary Hugging Face folder, and ``folder/trainer``, what else goes on from here.

        The weights are exact: 32-bit, whatever the folder held that training began with.
        """
        model, trainer = Path(folder) / "model", Path(folder) / "trainer"
        tied = self.engine.module.config.tie_word_embeddings
        weights = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in self.weights()
            # A tied output layer is not in a Hugging Face folder: it is the input embedding.
            if rank() == 0 and not (tied and name == "lm_head.weight")
        }
        if rank() == 0:
            shutil.copytree(self._plan.model, model, ignore=shutil.ignore_patterns(*_WEIGHT_FILES))
            _name_dtype(model / "config.json", "float32")
            save_file(weights, model / _WEIGHTS, metadata={"format": "pt"})
        trainer.mkdir(exist_ok=True)
        more = {"random": self.engine.checkpoint_manager.get_rng_state(), "updates": self.updates}
        save_state(self.engine, trainer, more)
        if self.critic is not None:
            self.critic.save(Path(folder) / "critic")
        return {}

    def load(self, folder: str) -> dict[str, Any]:
        """Continue from what ``save`` wrote, bit by bit."""
        load_weights(self.engine, Path(folder) / "model" / _WEIGHTS)
        state = load_state(self.engine, Path(folder) / "trainer")
        if self.critic is not None:
            self.critic.load(Path(folder) / "critic")
        self.engine.checkpoint_manager.load_rng_state(state["random"])
        self.updates = state["updates"]
        return {}

    def _warm_up(self) -> None:
        """One pass without a step: the first is slower by seconds, and the server is not ready yet anyway."""
        row = Row("", [0, 0], [0, 0], [1, 1], [0.0, 0.0], [0.0, 0.0], 1.0)
        with self.engine.train_mode():
            self._accumulate([row], 1.0, UpdateFigures())
            self.engine.optimizer_zero_grad()

    def _update_policy(self, rows: list[Row], temperature: float) -> dict[str, float]:
        self.loss.normalise(rows)
        own = UpdateFigures()
        self._look_up(rows, temperature, own)
        with self.engine.train_mode():
            for epoch in range(self.loss.settings.epochs):
                for mini_batch in self._mini_batches(rows, epoch):
                    self._gradient_step(mini_batch, temperature, own)
            learning_rate = float(self.engine.lr_scheduler.get_last_lr()[0])
            self.engine.lr_scheduler_step()
        figures = UpdateFigures.of_all(gathered(own))
        return figures.summary() | self._correction_figures(figures) | {"lr": learning_rate}

    def _look_up(self, rows: list[Row], temperature: float, figures: UpdateFigures) -> None:
        """Give each row the log-probs that the loss wants besides those of the rollout."""
        if self.loss.settings.correction.proximal == "actor":
            found = forward(self.engine, rows, "log_probs", temperature=temperature, limit=self.limit)
            for row, logprobs in zip(rows, found, strict=True):
                row.proximal_logprobs = logprobs
                sampled = np.asarray(row.response_mask, dtype=bool)
                figures.compared.append(
                    (row.role, np.asarray(row.rollout_logprobs)[sampled], np.asarray(logprobs)[sampled])
                )
        if self._reference is not None:
            found = forward(self._reference, rows, "log_probs", temperature=temperature, limit=self.limit)
            for row, logprobs in zip(rows, found, strict=True):
                row.reference_logprobs = logprobs

    def _mini_batches(self, rows: list[Row], epoch: int) -> Iterator[list[Row]]:
        """The rows of each gradient step: all of them, or random parts of equal size (± 1)."""
        count = min(self.loss.settings.mini_batches, len(rows))
        if count > 1:
            rows = random.Random(f"{self._plan.seed}-{self.updates}-{epoch}").sample(rows, len(rows))
        for number in range(count):
            yield rows[number * len(rows) // count : (number + 1) * len(rows) // count]

    def _gradient_step(self, rows: list[Row], temperature: float, figures: UpdateFigures) -> None:
        self.engine.optimizer_zero_grad()
        self._accumulate(rows, temperature, figures)
        figures.end_step(float(self.engine.optimizer_step()))

    def _accumulate(self, rows: list[Row], temperature: float, figures: UpdateFigures) -> None:
        """Add up the gradient of the loss over these rows, pass by pass."""
        share = Share(rows=len(rows), tokens=sum(row.tokens for row in rows), ranks=rank_count())
        for group in passes_here(rows, self.limit):

            def loss(
                model_output: dict[str, Any],
                data: TensorDict,
                dp_group: Any,  # noqa: ARG001 - verl passes it
                group: Sequence[Row] = group,
            ) -> tuple[torch.Tensor, dict[str, Any]]:
                log_probs_RT = no_padding_2_padding(model_output["log_probs"], data)
                entropy_RT = no_padding_2_padding(model_output["entropy"], data)
                value, told = self.loss(group, log_probs_RT, entropy_RT, share)
                _take_in(figures, group, told, before_first_step=not figures.gradient_norms)
                return value, {}

            data = one_pass(group, temperature=temperature, entropy_gradient=self.loss.settings.entropy > 0)
            self.engine.forward_backward_batch(data, loss)

    def _correction_figures(self, figures: UpdateFigures) -> dict[str, float]:
        compared = [
            (torch.from_numpy(rollout_T), torch.from_numpy(actor_T)) for _, rollout_T, actor_T in figures.compared
        ]
        if not compared:
            return {}
        rollout_RT, actor_RT = (
            torch.nn.utils.rnn.pad_sequence([pair[side] for pair in compared], batch_first=True) for side in (0, 1)
        )
        mask_RT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(pair[0]) for pair in compared], batch_first=True)
        return self.loss.correction_figures(rollout_RT, actor_RT, mask_RT)


def _take_in(figures: UpdateFigures, rows: Sequence[Row], told: PassFigures, *, before_first_step: bool) -> None:
    """Add what one pass told. A row's own log-probs of before the first step are kept, unless they are there already."""
    # The loss is multiplied by the number of ranks, over which gradients are averaged.
    figures.loss += told.loss / rank_count()
    figures.has_reference = told.reference is not None
    figures.clips_tokens = told.clipped is not None
    if told.clip_fraction is not None:
        figures.clip_fraction += told.clip_fraction * float(told.mask.sum())
    mask_RT, entropy_RT, actor_RT, rollout_RT, proximal_RT = map(
        _numbers, (told.mask, told.entropy, told.actor, told.rollout, told.proximal)
    )
    reference_RT = None if told.reference is None else _numbers(told.reference)
    clipped_RT = None if told.clipped is None else _numbers(told.clipped)
    for number, row in enumerate(rows):
        sampled_T = mask_RT[number] > 0
        if not sampled_T.any():
            continue
        sums = figures.of_role(row.role)
        sums.tokens += float(sampled_T.sum())
        sums.entropy += float(entropy_RT[number][sampled_T].sum())
        sums.ppo_kl += float((proximal_RT[number] - actor_RT[number])[sampled_T].sum())
        if reference_RT is not None:
            sums.kl_reference += float(reference_RT[number][sampled_T].sum())
        if clipped_RT is not None:
            sums.clipped += float(clipped_RT[number][sampled_T].sum())
        if before_first_step and row.proximal_logprobs is None:
            figures.compared.append((row.role, rollout_RT[number][sampled_T], actor_RT[number][sampled_T]))


def _numbers(tensor: torch.Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = tensor.double().numpy(force=True)
    return numbers


def _name_dtype(path: Path, dtype: str) -> None:
    """Let a Hugging Face configuration say which type its weights have, or loaders would round them."""
    content = json.loads(path.read_text())
    content.pop("torch_dtype", None)
    path.write_text(json.dumps(content | {"dtype": dtype}, indent=2))
