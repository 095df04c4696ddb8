"""The one module that drives verl: an FSDP2 engine with verl's PPO loss, fed with plain rows.

Runs in the trainer process. Tensors of several rows are jagged: row after row without padding, as verl wants them.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torch.distributed.tensor import DTensor, distribute_tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils
from verl.workers.config import (
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    PolicyLossConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

import coterie_trainers.backends.local.response_engine  # noqa: F401 - registers itself
from coterie_trainers.backends.local.ranks import gathered, rank, rank_count
from coterie_trainers.backends.local.shares import passes_of_rank, state_file
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.local.weight_sender import send_weights
from coterie_trainers.mismatch import mismatch

_COLUMNS = ("prompt_ids", "response_ids", "response_mask", "rollout_logprobs", "advantages", "weights")
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")
_WEIGHTS = "model.safetensors"
_CPU_PASS_TOKENS = 4096
"""On a CPU smaller passes are faster, by a quarter against 16,384 tokens: their tensors stay in the cache."""


@dataclass(frozen=True, slots=True)
class _Row:
    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    rollout_logprobs: list[float]
    advantages: list[float]
    weight: float

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


_NOTHING = _Row([0], [0, 0], [0, 0], [0.0, 0.0], [0.0, 0.0], 0.0)
"""A row without a trained token."""


class PolicyTrainer:
    """One policy's weights and optimiser."""

    def __init__(self, plan: TrainerPlan) -> None:
        """Load the model and make the optimiser."""
        torch.manual_seed(plan.seed)
        self._plan = plan
        self._updates = 0
        worker = TrainingWorker(_worker_config(plan))
        worker.reset()
        self._engine = worker.engine
        self._loss_config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=plan.clip_ratio,
            clip_ratio_low=plan.clip_ratio,
            clip_ratio_high=plan.clip_ratio,
            loss_agg_mode=plan.loss_aggregation,
            policy_loss=PolicyLossConfig(loss_mode="vanilla"),
        )
        self._warm_up()

    def update(self, columns: dict[str, list[Any]], temperature: float) -> dict[str, Any]:
        """One pass over the rows in ``mini_batches`` gradient steps.

        The old log-probabilities of PPO's ratio are those of the rollout, so no pass is spent on computing them anew.
        ``mismatch_*`` compares both in the forward pass of the first gradient step, which runs with the weights as
        they were: with one mini-batch that is every row.
        """
        began = time.monotonic()
        rows = [_Row(*values) for values in zip(*(columns[name] for name in _COLUMNS), strict=True)]
        figures = _Figures()
        with self._engine.train_mode():
            for mini_batch in self._mini_batches(rows):
                self._gradient_step(mini_batch, temperature, figures)
            learning_rate = float(self._engine.lr_scheduler_step())
        self._updates += 1
        return {
            "metrics": _Figures.of_all(gathered(figures)).summary()
            | {"lr": learning_rate, "seconds": time.monotonic() - began}
        }

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight whole, under its name in the Hugging Face folder. All ranks must go through all of them."""
        yield from self._engine.get_per_tensor_param()[0]

    def largest_weight(self) -> int:
        """Bytes of the largest weight."""
        state = self._engine.module.state_dict()
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
        tied = self._engine.module.config.tie_word_embeddings
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
        state = {
            "optimizer": self._engine.optimizer.state_dict(),
            "scheduler": self._engine.lr_scheduler.state_dict(),
            "random": self._engine.checkpoint_manager.get_rng_state(),
            "updates": self._updates,
        }
        torch.save(state, trainer / state_file(rank(), rank_count()))
        return {}

    def load(self, folder: str) -> dict[str, Any]:
        """Continue from what ``save`` wrote, bit by bit."""
        weights = load_file(Path(folder) / "model" / _WEIGHTS)
        with torch.no_grad():
            for name, parameter in self._engine.module.state_dict().items():
                if name in weights:
                    parameter.copy_(_sharded_as(parameter, weights.pop(name)))
        if weights:
            raise ValueError(f"{folder} holds weights that the model has not: {', '.join(sorted(weights)[:5])}")
        # The file is our own; it holds DTensors, which the restricted loader does not know.
        state = torch.load(Path(folder) / "trainer" / state_file(rank(), rank_count()), weights_only=False)
        self._engine.optimizer.load_state_dict(state["optimizer"])
        self._engine.lr_scheduler.load_state_dict(state["scheduler"])
        self._engine.checkpoint_manager.load_rng_state(state["random"])
        self._updates = state["updates"]
        return {}

    def _warm_up(self) -> None:
        """One pass without a step: the first is slower by seconds, and the server is not ready yet anyway."""
        row = _Row([0, 0], [0, 0], [1, 1], [0.0, 0.0], [0.0, 0.0], 1.0)
        with self._engine.train_mode():
            self._accumulate([row], 1.0, _Figures())
            self._engine.optimizer_zero_grad()

    def _mini_batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """The rows of each gradient step: all of them, or random parts of equal size (± 1)."""
        count = min(self._plan.mini_batches, len(rows))
        if count > 1:
            rows = random.Random(f"{self._plan.seed}-{self._updates}").sample(rows, len(rows))
        for number in range(count):
            yield rows[number * len(rows) // count : (number + 1) * len(rows) // count]

    def _gradient_step(self, rows: list[_Row], temperature: float, figures: _Figures) -> None:
        self._engine.optimizer_zero_grad()
        self._accumulate(rows, temperature, figures)
        figures.end_step(float(self._engine.optimizer_step()))

    def _accumulate(self, rows: list[_Row], temperature: float, figures: _Figures) -> None:
        """Add up the gradient of the mean loss over these rows, pass by pass."""
        tokens = sum(sum(row.response_mask) for row in rows)

        def loss(model_output: dict[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[torch.Tensor, Any]:
            # verl has counted the tokens of this pass; the loss is a mean over those of the whole gradient step.
            tensordict_utils.assign_non_tensor(data, batch_num_tokens=max(tokens, 1))
            # Taken out before verl's loss, else the backward pass goes through it for a coefficient of zero.
            entropy = model_output.pop("entropy")
            value, metrics = ppo_loss(self._loss_config, model_output, data, dp_group)
            figures.add(value, metrics, model_output["log_probs"], entropy, data)
            return value, {}

        limit = self._plan.max_tokens_per_pass
        limit = min(limit, _CPU_PASS_TOKENS) if self._plan.on_cpu else limit
        for group in passes_of_rank(
            rows,
            lambda share: list(_passes(share, limit)),
            lambda row: row.length,
            _NOTHING,
            rank=rank(),
            ranks=rank_count(),
        ):
            data = _tensors(group)
            tensordict_utils.assign_non_tensor(
                data,
                temperature=temperature,
                global_batch_size=len(rows),
                use_remove_padding=False,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=len(group),
            )
            self._engine.forward_backward_batch(data, loss)


@dataclass(slots=True)
class _Figures:
    """Sums over the passes of one update."""

    loss: float = 0.0
    tokens: int = 0
    clipped: float = 0.0
    divergence: float = 0.0
    entropy: float = 0.0
    compared: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    """Log-probs of rollout and actor, of the sampled tokens of each pass before the first gradient step."""
    gradient_norms: list[float] = field(default_factory=list)

    def add(self, loss: torch.Tensor, metrics: Any, log_probs: torch.Tensor, entropy: Any, data: TensorDict) -> None:
        """Take in one forward pass."""
        log_probs = log_probs.detach()
        padded = data.select("response_mask", "old_log_probs").to_padded_tensor()
        mask = padded["response_mask"].bool()
        tokens = int(mask.sum())
        if tokens == 0:
            return
        # verl has multiplied it by the number of ranks, over which gradients are averaged.
        self.loss += float(loss.detach()) / rank_count()
        self.tokens += tokens
        self.clipped += tokens * float(metrics["actor/pg_clipfrac"].aggregate())
        self.divergence += tokens * float(metrics["actor/ppo_kl"].aggregate())
        self.entropy += float(no_padding_2_padding(entropy, data)[mask].sum())
        if not self.gradient_norms:
            actor = no_padding_2_padding(log_probs, data)[mask]
            self.compared.append(
                (padded["old_log_probs"][mask].double().numpy(force=True), actor.double().numpy(force=True))
            )

    @classmethod
    def of_all(cls, of_ranks: Sequence[_Figures]) -> _Figures:
        """The figures of all ranks together. The gradient's norm is that of all of them on each."""
        return cls(
            sum(one.loss for one in of_ranks),
            sum(one.tokens for one in of_ranks),
            sum(one.clipped for one in of_ranks),
            sum(one.divergence for one in of_ranks),
            sum(one.entropy for one in of_ranks),
            [compared for one in of_ranks for compared in one.compared],
            of_ranks[0].gradient_norms,
        )

    def end_step(self, gradient_norm: float) -> None:
        """A gradient step is done; verl skips a step whose gradient is not finite."""
        self.gradient_norms.append(gradient_norm)

    def summary(self) -> dict[str, float]:
        """What ``PolicyUpdate.metrics`` holds."""
        steps, tokens = len(self.gradient_norms), max(self.tokens, 1)
        figures = {
            "loss": self.loss / steps,
            "grad_norm": sum(self.gradient_norms) / steps,
            "clip_fraction": self.clipped / tokens,
            "ppo_kl": self.divergence / tokens,
            "entropy": self.entropy / tokens,
            "gradient_steps": float(steps),
        }
        if self.compared:
            rollout_T, actor_T = (np.concatenate(side) for side in zip(*self.compared, strict=True))
            figures |= mismatch(rollout_T, actor_T, np.ones(len(actor_T))).metrics()
        return figures


def _worker_config(plan: TrainerPlan) -> TrainingWorkerConfig:
    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=plan.model,
            use_remove_padding=False,
            enable_gradient_checkpointing=not plan.on_cpu,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=1,
            infer_micro_batch_size_per_gpu=1,
            use_torch_compile=False,
            use_remove_padding=False,
            mixed_precision={
                "param_dtype": "fp32" if plan.on_cpu else "bf16",
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            },
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=plan.learning_rate,
            betas=tuple(plan.betas),
            weight_decay=plan.weight_decay,
            clip_grad=plan.clip_grad,
        ),
        checkpoint_config=CheckpointConfig(),
        profiler_config=None,
    )


def _passes(rows: Sequence[_Row], limit: int) -> Iterator[list[_Row]]:
    """Rows of like length together, such that rows × longest stays within ``limit`` padded tokens."""
    group: list[_Row] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if group and (len(group) + 1) * group[0].length > limit:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _tensors(rows: Sequence[_Row]) -> TensorDict:
    """One pass's rows as verl's jagged tensors. A row's weight scales its advantages, to which the loss is linear."""
    device = torch.device("cpu")
    mask = _jagged([row.response_mask for row in rows], torch.long, device)
    return tensordict_utils.get_tensordict(
        {
            "input_ids": _jagged([[*row.prompt_ids, *row.response_ids] for row in rows], torch.long, device),
            "position_ids": _jagged([list(range(row.length)) for row in rows], torch.long, device),
            "prompts": _jagged([row.prompt_ids for row in rows], torch.long, device),
            "responses": _jagged([row.response_ids for row in rows], torch.long, device),
            "response_mask": mask,
            "loss_mask": mask,
            "old_log_probs": _jagged([row.rollout_logprobs for row in rows], torch.float32, device),
            "advantages": _jagged([[a * row.weight for a in row.advantages] for row in rows], torch.float32, device),
        }
    )


def _sharded_as(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every rank has, as this rank holds the parameter."""
    if not isinstance(parameter, DTensor):
        return whole
    whole = whole.to(parameter.device, parameter.dtype)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _jagged(values: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    lengths = torch.tensor([0, *map(len, values)], device=device)
    flat = torch.tensor([value for row in values for value in row], dtype=dtype, device=device)
    return torch.nested.nested_tensor_from_jagged(flat, offsets=lengths.cumsum(0))


def _name_dtype(path: Path, dtype: str) -> None:
    """Let a Hugging Face configuration say which type its weights have, or loaders would round them."""
    content = json.loads(path.read_text())
    content.pop("torch_dtype", None)
    path.write_text(json.dumps(content | {"dtype": dtype}, indent=2))
