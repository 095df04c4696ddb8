"""The backend that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from coterie.errors import ConfigError
from coterie.interfaces import Backend
from coterie_trainers.config import TrainConfig
from coterie_trainers.policy_map import with_schedule_lengths
from coterie_trainers.workspace import Workspace


def make_backend(config: TrainConfig, workspace: Workspace, folder: Path) -> Backend:
    """The backend that the configuration names: one of the entry points ``coterie.backends``.

    Raises:
        ConfigError: there is none of this name.
    """
    found = {entry.name: entry for entry in entry_points(group="coterie.backends")}
    if config.backend.kind not in found:
        raise ConfigError(f"backend.kind: no backend {config.backend.kind!r}; there are: {', '.join(sorted(found))}.")
    folders = (folder, workspace.folder)
    policies = {
        name: policy if policy.hosted else policy.model_copy(update={"model": _placed(policy.model, folders)})
        for name, policy in with_schedule_lengths(config).items()
    }
    critic = config.critic
    if critic is not None and critic.model is not None:
        critic = critic.model_copy(update={"model": _placed(critic.model, folders)})
    make = found[config.backend.kind].load()
    return cast(
        Backend,
        make(
            policies,
            config.backend,
            config.loss,
            config.sampling,
            critic=critic,
            folder=workspace.folder,
            seed=config.seed,
        ),
    )


def _placed(model: str, folders: Sequence[Path]) -> str:
    """A model's folder, absolute if it lies in one of these."""
    path = next((base / model for base in folders if (base / model).exists()), None)
    return model if path is None else str(path.resolve())
