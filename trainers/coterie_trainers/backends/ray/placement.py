"""Which GPUs the policies ask for, and whether a cluster has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from coterie_trainers.backends.local.groups import ServerGroup
from coterie_trainers.config import RayBackend


@dataclass(frozen=True, slots=True)
class Placement:
    """What one policy asks for."""

    ranks: int
    """Training processes, a GPU each; 0 for what is frozen."""
    nodes: int
    """Nodes that its ranks are spread over, equally many on each."""
    replicas: int
    """Model servers."""
    tensor_parallel: int
    """GPUs of each model server, all on one node."""

    @property
    def gpus(self) -> int:
        """All of it."""
        return self.ranks + self.replicas * self.tensor_parallel

    @property
    def processes(self) -> int:
        """Ranks and replicas, for each of which Ray sets one CPU aside."""
        return self.ranks + self.replicas

    def on_one_node_each(self) -> Iterator[tuple[str, int]]:
        """What cannot be divided over nodes: what it is, and its GPUs."""
        for _ in range(self.nodes if self.ranks else 0):
            yield f"{self.ranks // self.nodes} ranks", self.ranks // self.nodes
        for _ in range(self.replicas):
            yield "a replica", self.tensor_parallel


@dataclass(frozen=True, slots=True)
class Room:
    """What is free on one node."""

    node: str
    gpus: float
    cpus: float


def placements(settings: RayBackend, servers: Sequence[ServerGroup]) -> dict[str, Placement]:
    """What each server asks for, with the ranks of those of its policies that are trained; by its policies' names."""

    def of(given: int | Mapping[str, int], policy: str) -> int:
        return given if isinstance(given, int) else given.get(policy, 1)

    return {
        ", ".join(each.policies): Placement(
            sum(of(settings.ranks, policy) for trainer in each.trainers for policy in trainer.policies),
            settings.nodes,
            max(of(settings.replicas, policy) for policy in each.policies),
            max(of(settings.tensor_parallel, policy) for policy in each.policies),
        )
        for each in servers
    }


def shortage(asked: Mapping[str, Placement], free: Sequence[Room]) -> str | None:
    """Why the cluster is too small, with the arithmetic; None if there is room for everything."""
    gpus, cpus = sum(room.gpus for room in free), sum(room.cpus for room in free)
    wanted_gpus = sum(one.gpus for one in asked.values())
    wanted_cpus = sum(one.processes for one in asked.values())
    terms = "; ".join(f"{policy!r}: {_sum(one)}" for policy, one in asked.items())
    there = ", ".join(f"{room.node} {room.gpus:g}" for room in free) or "no node"
    if wanted_gpus > gpus:
        return (
            f"The policies ask for {wanted_gpus} GPUs ({terms}), and the cluster has {gpus:g} free ({there}). {_REMEDY}"
        )
    if wanted_cpus > cpus:
        return f"The policies ask for {wanted_cpus} CPUs, one a rank or replica, and the cluster has {cpus:g} free. {_REMEDY}"
    left = {room.node: room.gpus for room in free}
    blocks = [(gpus, policy, what) for policy, one in asked.items() for what, gpus in one.on_one_node_each()]
    for gpus, policy, what in sorted(blocks, reverse=True):
        node = min((name for name in left if left[name] >= gpus), key=lambda name: left[name], default=None)
        if node is None:
            return (
                f"No node has room for {what} of policy {policy!r}, which need {gpus} GPUs on one node: {terms}, and free "
                f"are {there}. {_REMEDY}"
            )
        left[node] -= gpus
    return None


def _sum(one: Placement) -> str:
    return f"{one.ranks} ranks + {one.replicas} replicas × {one.tensor_parallel} = {one.gpus}"


_REMEDY = "Lower backend.ranks, backend.replicas or backend.tensor_parallel, or give the cluster more nodes."
