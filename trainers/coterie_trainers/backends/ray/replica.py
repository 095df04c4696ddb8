"""An actor that owns one ``vllm serve`` on a node of the cluster, and passes on to it the weights that arrive there."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from coterie.errors import BackendError
from coterie_trainers.backends.local.device import Device
from coterie_trainers.backends.local.server import ModelServer, ServerPlan
from coterie_trainers.backends.local.weight_socket import worker_socket
from coterie_trainers.config import RayBackend

if TYPE_CHECKING:
    import torch

    from coterie_trainers.backends.ray.buckets import Bucket

CALLS_AT_ONCE = 4
"""Weights arrive while it waits for the server to have taken them."""


class Replica:
    """A model server, and the last station of its weights: from Ray's object store to shared memory."""

    def __init__(self, plan: Mapping[str, Any], settings: Mapping[str, Any], runtime: str | None, shared: str) -> None:
        """Start the server; ``wait_ready`` tells when it answers.

        Args:
            plan: What ``ServerPlan`` has, without ``runtime``, ``weight_socket`` and ``host``, which belong to the node.
            settings: The section ``backend`` of the configuration.
            runtime: A folder for its sockets; a new one by default.
            shared: First part of the names of the shared memory that it makes.
        """
        folder = Path(runtime or tempfile.mkdtemp(prefix="coterie-"))
        folder.mkdir(parents=True, exist_ok=True)
        own = {"model": Path(plan["model"]), "log": Path(plan["log"]), "device": Device(plan["device"])}
        own |= {name: tuple(plan[name]) for name in ("names", "arguments")}
        self._plan = ServerPlan(
            **{**plan, **own},
            runtime=folder,
            weight_socket=f"ipc://{folder}/weights",
            host=_address_of_this_node(),
        )
        self._settings = RayBackend(**settings)
        self._shared = shared
        self._transfers = 0
        self._arriving: dict[int, Arriving] = {}
        self._lock = threading.Lock()
        self._server = ModelServer(self._plan, self._settings)

    def wait_ready(self, seconds: float) -> str:
        """Wait until the server answers; gives its OpenAI-compatible base, as other nodes reach it.

        Raises:
            BackendError: it ended, or took longer.
        """
        self._server.wait_ready(time.monotonic() + seconds)
        return self._server.base_url

    def receive_weights(self, version: int, seconds: float) -> dict[str, Any]:
        """Let the server take the weights that ``take`` brings meanwhile, as this version.

        Raises:
            BackendError: the server ended, refused, or took longer than ``seconds``.
        """
        with self._lock:
            self._transfers += 1
            number = self._transfers
        arriving = self._arrival(number)
        workers = len(arriving.of_workers)
        senders = ThreadPoolExecutor(workers)
        try:
            sent = [senders.submit(self._send, arriving, worker, seconds) for worker in range(workers)]
            answer = self._server.receive_weights(version, seconds)
            for one in sent:
                one.result(seconds)
        finally:
            # If the server is gone, a sender still waits for it: its end is not worth waiting for.
            senders.shutdown(wait=False)
            del self._arriving[number]
        return answer

    def take(self, number: int, bucket: Bucket, largest: int, seconds: float) -> None:
        """A part of the weights arrives.

        Args:
            number: Of the transfer, from 1.
            bucket: The part.
            largest: Bytes of the largest weight of all.
            seconds: How long the part before it may keep this one waiting.
        """
        arriving = self._arrival(number)
        arriving.largest = largest
        arriving.put(bucket, seconds)

    def took_all(self, number: int, tensors: int, largest: int, seconds: float) -> None:
        """After the last part: how many weights all parts hold together."""
        arriving = self._arrival(number)
        arriving.largest = largest
        arriving.put(tensors, seconds)

    def warm_up(self, model: str, seconds: float) -> None:
        """Make the first request, which is slower than those after it."""
        self._server.warm_up(model, seconds)

    def tokenize(self, model: str, text: str, seconds: float) -> list[int]:
        """The token ids that the server makes of a text, without special tokens."""
        return self._server.tokenize(model, text, seconds)

    def stop(self) -> None:
        """End the server. Safe to call twice."""
        self._server.stop()

    def _arrival(self, number: int) -> Arriving:
        """Either side may come first."""
        with self._lock:
            if number not in self._arriving:
                self._arriving[number] = Arriving(self._plan.tensor_parallel)
            return self._arriving[number]

    def _send(self, arriving: Arriving, worker: int, seconds: float) -> None:
        from coterie_trainers.backends.local.weight_sender import send_weights

        arriving.wait(worker, seconds)
        send_weights(
            arriving.weights(worker, seconds),
            largest=arriving.largest,
            address=worker_socket(self._plan.weight_socket, worker),
            prefix=self._shared,
            over_ipc=False,
            seconds=seconds,
        )


def _address_of_this_node() -> str:
    """Under which the cluster knows it. Ray's own function for this looks for one that reaches the Internet."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == here)


class Arriving:
    """The weights of one transfer: each worker of the server gets all of them."""

    def __init__(self, workers: int) -> None:
        self.largest = 0
        # One is on its way to the worker while the next one waits.
        self.of_workers: list[queue.Queue[Bucket | int]] = [queue.Queue(1) for _ in range(workers)]
        self._first: dict[int, Bucket | int] = {}

    def put(self, part: Bucket | int, seconds: float) -> None:
        """A part, or after the last the number of all weights."""
        for parts in self.of_workers:
            parts.put(part, timeout=seconds)

    def wait(self, worker: int, seconds: float) -> None:
        """Wait for the first part for one of the workers; with it ``largest`` is known."""
        self._first[worker] = self.of_workers[worker].get(timeout=seconds)

    def weights(self, worker: int, seconds: float) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, as they arrive.

        Raises:
            BackendError: there were not as many as were sent.
        """
        part, came = self._first.pop(worker), 0
        while not isinstance(part, int):
            for named in part.weights():
                came += 1
                yield named
            part = self.of_workers[worker].get(timeout=seconds)
        if came != part:
            raise BackendError(f"{came} of {part} weights arrived")
