"""Weights, optimiser and schedule of one of verl's engines on disk, exact, whatever number of ranks it is spread over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from coterie_trainers.backends.local.ranks import rank, rank_count
from coterie_trainers.backends.local.shares import state_file

_WEIGHTS = "model.safetensors"


def save_engine(engine: Any, folder: Path, more: Mapping[str, Any]) -> None:
    """Write what ``load_engine`` reads. Every rank must call it."""
    folder.mkdir(exist_ok=True)
    weights = {name: _whole(tensor) for name, tensor in engine.module.state_dict().items()}
    if rank() == 0:
        # Tied weights are one tensor under two names, which the format does not have.
        save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / _WEIGHTS)
    save_state(engine, folder, more)


def load_engine(engine: Any, folder: Path) -> dict[str, Any]:
    """Continue from what ``save_engine`` wrote; gives ``more``."""
    load_weights(engine, folder / _WEIGHTS)
    return load_state(engine, folder)


def load_weights(engine: Any, file: Path) -> None:
    """Put the weights of a file into the engine's model.

    Raises:
        ValueError: the file has weights that the model has not.
    """
    weights = load_file(file)
    with torch.no_grad():
        for name, parameter in engine.module.state_dict().items():
            if name in weights:
                parameter.copy_(_sharded_as(parameter, weights.pop(name)))
    if weights:
        raise ValueError(f"{file} holds weights that the model has not: {', '.join(sorted(weights)[:5])}")


def save_state(engine: Any, folder: Path, more: Mapping[str, Any]) -> None:
    """Write this rank's part of optimiser, schedule and ``more``."""
    state = {"optimizer": engine.optimizer.state_dict(), "scheduler": engine.lr_scheduler.state_dict(), **more}
    torch.save(state, folder / state_file(rank(), rank_count()))


def load_state(engine: Any, folder: Path) -> dict[str, Any]:
    """Go on from what ``save_state`` wrote; gives all of it."""
    # The file is our own; it holds DTensors, which the restricted loader does not know.
    state: dict[str, Any] = torch.load(folder / state_file(rank(), rank_count()), weights_only=False)
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.lr_scheduler.load_state_dict(state["scheduler"])
    return state


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu").contiguous()


def _sharded_as(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every rank has, as this rank holds the parameter."""
    if not isinstance(parameter, DTensor):
        return whole
    whole = whole.to(parameter.device, parameter.dtype)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
