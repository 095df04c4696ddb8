"""``RayBackend``: what ``LocalBackend`` does, with its trainers and servers on a Ray cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from coterie.errors import ConfigError
from coterie.vocabulary import Endpoint
from coterie_trainers import config
from coterie_trainers.backends.local.backend import LocalBackend
from coterie_trainers.backends.local.device import Device
from coterie_trainers.backends.local.server import ModelServer, ServerPlan
from coterie_trainers.backends.local.shares import require_ranks
from coterie_trainers.backends.local.trainer import Trainer, TrainerPlan
from coterie_trainers.backends.ray.cluster import Cluster
from coterie_trainers.backends.ray.parts import RanksOfPolicy, ReplicasOfPolicy
from coterie_trainers.backends.ray.placement import Placement, placements

_OWN_GPU = ("--gpu-memory-utilization", "0.9")
"""A server has its GPUs for itself."""


class RayBackend(LocalBackend):
    """verl on Ray: several ranks and replicas a policy; implements ``coterie.interfaces.Backend``.

    What it does with rows, versions and checkpoints is what the local backend does; only where the parts are is another
    matter. Rows go to the ranks and weights to the replicas through Ray's object store.
    """

    def __init__(
        self, policies: Mapping[str, config.Policy], settings: config.RayBackend, *more: Any, **named: Any
    ) -> None:
        """As ``LocalBackend``, with the section ``backend`` of kind ``ray``. Nothing is started before ``serve``.

        Raises:
            ConfigError: a policy is an adapter.
        """
        adapters = [name for name, policy in policies.items() if policy.adapter]
        if adapters:
            raise ConfigError(
                f"policies.{adapters[0]}.adapter: backend.kind 'ray' trains policies whole; adapters are for 'local'."
            )
        super().__init__(policies, settings, *more, **named)
        self._ray = settings
        self._cluster: Cluster | None = None
        self._placements: Mapping[str, Placement] = placements(settings, self._groups)

    async def load(self, folder: Path) -> Mapping[str, int]:
        """As ``LocalBackend.load``; a checkpoint of another number of ranks is refused before anything is changed."""
        for policy in self._versions:
            if (folder / policy).is_dir():
                require_ranks(policy, folder / policy / "trainer", self._placements[policy].ranks)
        return await super().load(folder)

    async def _make_room(self, runtime: Path, deadline: float) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("backend.kind 'ray' needs ray, which is not installed: pip install 'coterie[ray]'.")
        cluster = Cluster(
            self._placements,
            address=self._ray.address,
            verl=self._ray.verl,
            device=self._device,
            runtime=runtime,
            log=self._folder / "logs" / "ray.log",
        )
        self._cluster = cluster
        await self._run(lambda: cluster.wait_ready(deadline))

    async def _leave_room(self) -> None:
        if self._cluster is not None:
            await self._run(self._cluster.stop)
            self._cluster = None

    def _start_server(self, plan: ServerPlan) -> ModelServer:
        workers = self._placements[plan.policy].tensor_parallel
        more: Sequence[str] = () if self._device is Device.CPU else _OWN_GPU
        if workers > 1:
            more = (*more, "--tensor-parallel-size", str(workers), "--distributed-executor-backend", "mp")
        assert self._cluster is not None
        replicas = ReplicasOfPolicy(
            replace(plan, tensor_parallel=workers, arguments=tuple(more)), self._cluster, self._ray
        )
        return cast(ModelServer, replicas)

    def _start_trainer(self, plan: TrainerPlan, runtime: Path, log: Path) -> Trainer:  # noqa: ARG002 - a rank logs where Ray logs
        assert self._cluster is not None
        return cast(Trainer, RanksOfPolicy(replace(plan, verl=self._ray.verl), self._cluster, self._ray))

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = super()._endpoint(name)
        if name not in self._servers:
            return endpoint
        bases = cast(ReplicasOfPolicy, self._servers[name]).base_urls
        return replace(endpoint, replicas=tuple(bases) if len(bases) > 1 else ())
