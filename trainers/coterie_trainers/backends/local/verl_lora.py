"""LoRA in verl's engine: how it gets an adapter, how that is written as PEFT has it, and the model without it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

_TENSORS = "adapter_model.safetensors"


def model_settings(adapter: Mapping[str, Any] | None) -> dict[str, Any]:
    """What verl's ``HFModelConfig`` is told about the section ``adapter`` of a policy."""
    if adapter is None:
        return {}
    return {
        "lora_rank": adapter["rank"],
        "lora_alpha": adapter["alpha"],
        "target_modules": adapter["target_modules"],
    }


def set_dropout(engine: Any, probability: float) -> None:
    """Drop parts of the adapter's input while it trains; verl 0.9.1 has no setting for it."""
    from peft.tuners.lora import LoraLayer

    for layer in engine.module.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = torch.nn.Dropout(probability)
    engine.module.peft_config["default"].lora_dropout = probability


def trained_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """The adapter's own tensors, live, under their names in a PEFT folder. One process holds all of each."""
    return {
        name.replace(".default.", "."): parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def write_adapter(engine: Any, folder: Path, *, base: str) -> None:
    """Write the adapter as a PEFT folder, exact.

    Args:
        engine: Which holds it.
        folder: Is made, in one that is there.
        base: The Hugging Face folder of the model that it belongs to.
    """
    folder.mkdir()
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in trained_tensors(engine).items()}
    save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
    settings = copy.copy(engine.module.peft_config["default"])
    settings.base_model_name_or_path = base
    settings.inference_mode = True
    settings.save_pretrained(folder)


def read_adapter(engine: Any, folder: Path) -> None:
    """Put an adapter that ``write_adapter`` wrote in the place of the engine's.

    Raises:
        ValueError: it is one of another shape.
    """
    saved, live = load_file(folder / _TENSORS), trained_tensors(engine)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in live.items()}:
        raise ValueError(f"{folder} holds an adapter of another shape")
    put(engine, saved)


def put(engine: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make these the adapter's tensors."""
    with torch.no_grad():
        for name, live in trained_tensors(engine).items():
            live.copy_(tensors[name])


class ModelUnderAdapter:
    """An engine as if it had no adapter, for forward passes: the reference costs no second copy of the model."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.forward_backward_batch = engine.forward_backward_batch

    @contextlib.contextmanager
    def eval_mode(self, **settings: Any) -> Iterator[None]:
        """As the engine's own."""
        with self._engine.eval_mode(**settings), self._engine.disable_adapter():
            yield
