"""verl's own settings in the configuration: checked against its dataclasses, and put into them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

from coterie.errors import ConfigError

_SECTIONS: Mapping[str, type] = {"engine": FSDPEngineConfig, "model": HFModelConfig, "optim": FSDPOptimizerConfig}
_OURS = {
    "engine.strategy": "it is fsdp2",
    "engine.forward_only": "the trainer trains",
    "engine.use_dynamic_bsz": "passes are cut by backend.max_tokens_per_pass",
    "engine.max_token_len_per_gpu": "set backend.max_tokens_per_pass",
    "engine.use_remove_padding": "rows of a pass are padded",
    "engine.ulysses_sequence_parallel_size": "ranks share rows, not sequences",
    "engine.micro_batch_size_per_gpu": "set backend.max_tokens_per_pass",
    "engine.infer_max_token_len_per_gpu": "set backend.max_tokens_per_pass",
    "engine.infer_micro_batch_size_per_gpu": "set backend.max_tokens_per_pass",
    "model.path": "set policies.<name>.model",
    "model.local_path": "set policies.<name>.model",
    "model.use_remove_padding": "rows of a pass are padded",
    "model.lora_rank": "set policies.<name>.adapter",
    "model.lora_alpha": "set policies.<name>.adapter",
    "model.target_modules": "set policies.<name>.adapter",
    "optim.lr": "set policies.<name>.learning_rate",
    "optim.betas": "set policies.<name>.betas",
    "optim.weight_decay": "set policies.<name>.weight_decay",
    "optim.clip_grad": "set policies.<name>.clip_grad",
    "optim.lr_scheduler_type": "set policies.<name>.schedule",
}
"""What has a place of its own in the configuration, or is not for choosing."""


def check_overrides(overrides: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a ConfigError that names the first setting that verl does not have, or not with such a value."""
    for section, given in overrides.items():
        if section not in _SECTIONS:
            raise ConfigError(f"unknown key 'backend.verl.{section}'.{_near(section, _SECTIONS)}")
        for name in given:
            if f"{section}.{name}" in _OURS:
                raise ConfigError(f"backend.verl.{section}.{name} is not set here: {_OURS[f'{section}.{name}']}.")
        overridden(section, given)


def configured(section: str, overrides: Mapping[str, Mapping[str, Any]], **ours: Any) -> Any:
    """The section's dataclass with our settings, and those of the configuration over them."""
    return _SECTIONS[section](**(ours | overridden(section, overrides.get(section, {}))))


def overridden(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one section as its dataclass's constructor takes them.

    Raises:
        ConfigError: verl has no such setting, or not with such a value.
    """
    return _settings(_SECTIONS[section], given, f"backend.verl.{section}")


def _settings(dataclass: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    kinds = {name: kind for name, kind in get_type_hints(dataclass).items() if not name.startswith("_")}
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds:
            raise ConfigError(
                f"unknown key '{where}.{name}': verl's {dataclass.__name__} has none.{_near(name, kinds)}"
            )
        kind = kinds[name]
        if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
            settings[name] = kind(**_settings(kind, value, f"{where}.{name}"))
            continue
        try:
            # verl writes "int = None" for numbers that may be left out.
            settings[name] = None if value is None else TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{where}.{name} = {value!r} is not allowed: {error.errors()[0]['msg']}.") from None
    return settings


def _near(name: str, known: Mapping[str, Any] | set[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
