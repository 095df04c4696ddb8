"""A policy's ranks and replicas as the driver knows them: what ``Trainer`` and ``ModelServer`` are without Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coterie_trainers.backends.local.server import ServerPlan
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.ray.cluster import Cluster
from coterie_trainers.config import RayBackend


class RanksOfPolicy:
    """The training processes of one policy."""

    def __init__(self, plan: TrainerPlan, cluster: Cluster, settings: RayBackend) -> None:
        """Nothing is started before ``wait_ready``, which may take its time: this is called in the driver's event loop."""
        self.process = cluster.process
        self._plan, self._policy, self._settings = plan, plan.policy, settings
        self._connection = cluster.connect()

    def wait_ready(self, deadline: float) -> None:
        """Start them, and wait until all have loaded their part of the model.

        Args:
            deadline: In ``time.monotonic`` seconds.

        Raises:
            BackendError: one ended, or the deadline passed.
        """
        self._ask("start_ranks", {"plan": asdict(self._plan)}, _left(deadline))
        seconds = _left(deadline)
        self._ask("ranks_ready", {"seconds": seconds}, seconds)

    def call(self, operation: str, *, within: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Let all ranks do something; gives the answer of rank 0.

        Args:
            operation: A method's name of ``PolicyTrainer``.
            within: How many seconds it may take; ``backend.update_seconds`` by default.
            arguments: The method's arguments, as JSON.
        """
        seconds = within if within is not None else self._settings.update_seconds
        if operation == "send_weights":
            self._ask("send_weights", {"seconds": seconds}, seconds)
            return {}
        asked = {"operation": operation, "arguments": arguments, "seconds": seconds}
        answer: dict[str, Any] = self._ask("on_ranks", asked, seconds, operation)
        return answer

    def stop(self) -> None:
        """They end with the cluster process."""
        self._connection.close()

    def _ask(self, method: str, arguments: dict[str, Any], seconds: float, operation: str | None = None) -> Any:
        what = f"the ranks of policy {self._policy!r} failed at {operation or method!r}"
        return self._connection.call(what, method, {"policy": self._policy, **arguments}, seconds)


class ReplicasOfPolicy:
    """The model servers of one policy."""

    def __init__(self, plan: ServerPlan, cluster: Cluster, settings: RayBackend) -> None:
        """Nothing is started before ``wait_ready``, which may take its time: this is called in the driver's event loop."""
        self.process = cluster.process
        self.base_urls: Sequence[str] = ()
        self._policy = plan.policy
        self._connection = cluster.connect()
        self._plan = {"plan": _as_json(plan), "settings": settings.model_dump(mode="json")}

    @property
    def base_url(self) -> str:
        """The OpenAI-compatible base of the first."""
        return self.base_urls[0]

    def wait_ready(self, deadline: float) -> None:
        """Start them, and wait until all answer.

        Args:
            deadline: In ``time.monotonic`` seconds.

        Raises:
            BackendError: one ended, or the deadline passed.
        """
        self._ask("start_replicas", self._plan, _left(deadline))
        seconds = _left(deadline)
        self.base_urls = self._ask("replicas_ready", {"seconds": seconds}, seconds)

    def receive_weights(self, version: int, seconds: float) -> dict[str, Any]:
        """Let all take the weights that rank 0 sends meanwhile, as this version; gives the figures of the slowest."""
        answers = self._ask("receive_weights", {"version": version, "seconds": seconds}, seconds)
        return max(answers, key=lambda answer: float(answer["seconds"]))

    def tokenize(self, model: str, text: str, seconds: float) -> list[int]:
        """The token ids that they make of a text, without special tokens."""
        return list(self._ask("tokenize", {"model": model, "text": text, "seconds": seconds}, seconds))

    def warm_up(self, model: str, seconds: float) -> None:
        """Let each answer its first request."""
        self._ask("warm_up", {"model": model, "seconds": seconds}, seconds)

    def stop(self) -> None:
        """They end with the cluster process."""
        self._connection.close()

    def _ask(self, method: str, arguments: dict[str, Any], seconds: float) -> Any:
        what = f"a model server of policy {self._policy!r} failed at {method!r}"
        return self._connection.call(what, method, {"policy": self._policy, **arguments}, seconds)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _as_json(plan: ServerPlan) -> Mapping[str, Any]:
    """Without what belongs to the node where the server will be."""
    content = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(plan).items()}
    del content["weight_socket"], content["host"]
    return content
