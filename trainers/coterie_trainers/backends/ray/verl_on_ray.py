"""The one module of this backend that drives verl on Ray: a policy's training processes as a ``RayWorkerGroup``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray.base import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

from coterie_trainers.backends.local.ranks import rank
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.ray.buckets import SMALLEST_BYTES, buckets
from coterie_trainers.backends.ray.placement import Placement
from coterie_trainers.backends.ray.waiting import results

_IN_FLIGHT = 2
"""Buckets on their way at once: one is taken while the next one is gathered."""


class Rank:
    """One training process of a policy: an actor around the same trainer that the local backend has."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """Meet the other ranks and load this one's part of the model."""
        from coterie_trainers.backends.local.verl_engine import PolicyTrainer

        self._trainer = PolicyTrainer(TrainerPlan(**plan))
        self._transfers = 0

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)  # type: ignore[untyped-decorator,unused-ignore]
    def call(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """What a method of ``PolicyTrainer`` gives; all ranks are asked for the same."""
        return None if operation == "ready" else getattr(self._trainer, operation)(**arguments)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)  # type: ignore[untyped-decorator,unused-ignore]
    def send_weights(self, replicas: Sequence[Any], seconds: float) -> None:
        """Rank 0 puts all weights into Ray's object store, from where every replica takes them; the others help gather."""
        self._transfers += 1
        largest = self._trainer.largest_weight()
        weights = self._trainer.weights()
        if rank() != 0:
            for _ in weights:
                pass
            return

        def ask(method: str, what: Any) -> list[Any]:
            return [getattr(one, method).remote(self._transfers, what, largest, seconds) for one in replicas]

        taken: list[list[Any]] = []
        tensors = 0
        for bucket in buckets(weights, max(largest, SMALLEST_BYTES)):
            if len(taken) >= _IN_FLIGHT:
                results(taken.pop(0), seconds)
            taken.append(ask("take", ray.put(bucket)))
            tensors += len(bucket.tensors)
        for refs in taken:
            results(refs, seconds)
        # Only now: an actor with several threads may begin a later call first.
        results(ask("took_all", tensors), seconds)


class Ranks:
    """The training processes of a policy, from outside. Its methods give Ray's references, one a rank."""

    def __init__(self, policy: str, plan: TrainerPlan, placement: Placement, environment: Mapping[str, str]) -> None:
        """Start them; they load the model from now on.

        Args:
            policy: Its name.
            plan: What they train, and how.
            placement: How many there are, and on how many nodes.
            environment: Variables that they have beyond those of the job.
        """
        each = placement.ranks // placement.nodes
        pool = RayResourcePool([each] * placement.nodes, use_gpu=True, name_prefix=f"{policy}-", max_colocate_count=1)
        actor = RayClassWithInitArgs(ray.remote(Rank), plan=asdict(plan))
        device = "cpu" if plan.on_cpu else "cuda"
        self._group = RayWorkerGroup(pool, actor, name_prefix=policy, device_name=device, worker_env=dict(environment))
        self.workers: Sequence[Any] = self._group.workers
        self.groups: Sequence[Any] = pool.pgs

    def call(self, operation: str, arguments: Mapping[str, Any]) -> Sequence[Any]:
        """Let all ranks do something. The arguments are stored once, for rows are many."""
        refs: Sequence[Any] = self._group.call(operation, ray.put(dict(arguments)))
        return refs

    def send_weights(self, replicas: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Send all weights to these replicas."""
        refs: Sequence[Any] = self._group.send_weights(tuple(replicas), seconds)
        return refs
