"""verl's training workers: FSDP2 engines with a model in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from verl.trainer.config import CheckpointConfig
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

import coterie_trainers.backends.local.response_engine
import coterie_trainers.backends.local.value_engine  # noqa: F401 - both register themselves
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.local.verl_lora import ModelUnderAdapter, model_settings, set_dropout
from coterie_trainers.backends.local.verl_overrides import configured
from coterie_trainers.config import Critic

_CPU_PASS_TOKENS = 4096
"""On a CPU smaller passes are faster, by a quarter against 16,384 tokens: their tensors stay in the cache."""


def policy_engine(plan: TrainerPlan) -> Any:
    """The engine that trains a policy, or the adapters of several."""
    engine = _engine(plan, "language_model", plan.model, _optimiser(plan), model_settings(plan.adapter))
    if plan.adapter and plan.adapter["dropout"]:
        set_dropout(engine, plan.adapter["dropout"])
    return engine


def reference_engine(plan: TrainerPlan, trained: Any) -> Any:
    """The model that the policy began with, for forward passes only. Under an adapter it is there already.

    verl's ``forward_only`` would keep it in the host's memory, pinned, which a CPU has not, and in 16 bits. An optimiser that never
    steps has no state, so what this costs is the weights.
    """
    if plan.adapter:
        return ModelUnderAdapter(trained)
    return _engine(plan, "language_model", plan.model, _optimiser(plan))


def value_engine(plan: TrainerPlan, settings: Critic) -> Any:
    """The engine that trains a critic."""
    # Its last layer is drawn at random.
    torch.manual_seed(plan.seed)
    optimiser = configured(
        "optim",
        plan.verl,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        clip_grad=settings.clip_grad,
    )
    return _engine(plan, "value_model", settings.model or plan.model, optimiser)


def pass_tokens(plan: TrainerPlan) -> int:
    """Padded tokens of one pass."""
    limit = plan.max_tokens_per_pass
    return min(limit, _CPU_PASS_TOKENS) if plan.on_cpu else limit


def _optimiser(plan: TrainerPlan) -> Any:
    return configured(
        "optim",
        plan.verl,
        lr=plan.learning_rate,
        betas=tuple(plan.betas),
        weight_decay=plan.weight_decay,
        clip_grad=plan.clip_grad,
    )


def _engine(
    plan: TrainerPlan,
    model_type: str,
    model: str,
    optimiser: Any,
    more: Mapping[str, Any] | None = None,
) -> Any:
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=model_type,
            model_config=configured(
                "model",
                plan.verl,
                path=model,
                use_remove_padding=False,
                enable_gradient_checkpointing=not plan.on_cpu,
                override_config={"attn_implementation": "sdpa"},
                **(more or {}),
            ),
            engine_config=configured(
                "engine",
                plan.verl,
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
            optimizer_config=optimiser,
            checkpoint_config=CheckpointConfig(),
            profiler_config=None,
        )
    )
    worker.reset()
    return worker.engine
