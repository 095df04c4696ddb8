"""A policy's trainer in this very process, without a server, and rows for it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from coterie_trainers import config
from coterie_trainers.backends.local.device import Device, environment
from coterie_trainers.backends.local.trainer import TrainerPlan


def let_verl_be_imported(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Set what a trainer process is started with."""
    variables = environment(Device.CPU, str(folder), threads=1)
    variables |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "VERL_ENGINE_VENDOR": "coterie",
    }
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    variables |= {"DIST_INIT_METHOD": f"file://{folder}/rendezvous"}
    for name, value in variables.items():
        if os.environ.get(name) != value:
            patch.setenv(name, value)


def plan(model: Path, loss: config.Loss, critic: config.Critic | None = None, **fields: Any) -> TrainerPlan:
    settings: dict[str, Any] = {
        "policy": "team",
        "model": str(model),
        "weight_socket": "",
        "shared_memory": "",
        "rendezvous": "",
        "learning_rate": 1e-3,
        "betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "clip_grad": 1.0,
        "loss": loss.model_dump(mode="json"),
        "horizon": 16,
        "critic": None if critic is None else critic.model_dump(mode="json"),
        "max_tokens_per_pass": 4096,
        "seed": 0,
        "on_cpu": True,
    }
    return TrainerPlan(**settings | fields)


def columns(
    count: int = 6, *, advantages: Sequence[float] = (1.0,), seed: int = 0, **more: list[Any]
) -> dict[str, list[Any]]:
    """Random rows of unequal length; advantages are dealt in turn. ``rollout_logprobs`` must be filled in."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(3, 100) for _ in range(chance.randint(2, 9))] for _ in range(count)]
    responses = [[chance.randrange(3, 100) for _ in range(chance.randint(2, 8))] for _ in range(count)]
    return {
        "role": ["coder" if number % 2 else "reviewer" for number in range(count)],
        "prompt_ids": prompts,
        "response_ids": responses,
        "response_mask": [[1] * len(response) for response in responses],
        "rollout_logprobs": [[0.0] * len(response) for response in responses],
        "advantages": [
            [advantages[number % len(advantages)]] * len(response) for number, response in enumerate(responses)
        ],
        "weight": [1.0] * count,
        "rewards": [None] * count,
        "returns": [None] * count,
        **more,
    }
