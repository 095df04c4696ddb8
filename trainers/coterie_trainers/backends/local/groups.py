"""Which policies share a model server, and which of these share a trainer.

A policy that is trained whole has a server and a trainer of its own. All others with the same model share one server: it
holds the model as it is, for frozen policies and under the adapters. Adapters of the same shape share a trainer too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie_trainers.config import Adapter, Policy


@dataclass(frozen=True, slots=True)
class TrainerGroup:
    """The policies of one trainer process."""

    policies: tuple[str, ...]
    adapter: Adapter | None
    """The shape of their adapters; None where the one policy is trained whole."""


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """The policies of one model server."""

    model: Path
    policies: tuple[str, ...]
    """All of them, in the configuration's order."""
    adapters: tuple[str, ...]
    """Those that are adapters."""
    trainers: tuple[TrainerGroup, ...]
    rank: int = 0
    """The largest rank of an adapter."""


def group(policies: Mapping[str, Policy], folder: Path) -> list[ServerGroup]:
    """The servers to start, each with its trainers; hosted policies have none.

    Args:
        policies: Policy name → its section of the configuration.
        folder: Where relative models are looked for.
    """
    groups: list[ServerGroup] = []
    shared: dict[Path, list[str]] = {}
    for name, policy in policies.items():
        if policy.hosted:
            continue
        model = folder / policy.model
        if policy.trained and policy.adapter is None:
            groups.append(ServerGroup(model, (name,), (), (TrainerGroup((name,), None),)))
        else:
            shared.setdefault(model.resolve(), []).append(name)
    return [*groups, *(_shared(model, names, policies) for model, names in shared.items())]


def _shared(model: Path, names: Sequence[str], policies: Mapping[str, Policy]) -> ServerGroup:
    adapters = {name: adapter for name in names if (adapter := policies[name].adapter)}
    same: dict[str, list[str]] = {}
    for name, adapter in adapters.items():
        same.setdefault(adapter.model_dump_json(), []).append(name)
    trainers = [TrainerGroup(tuple(together), adapters[together[0]]) for together in same.values()]
    rank = max((adapter.rank for adapter in adapters.values()), default=0)
    return ServerGroup(model, tuple(names), tuple(adapters), tuple(trainers), rank)
