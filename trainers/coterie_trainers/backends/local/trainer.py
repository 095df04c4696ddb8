"""The driver's side of one trainer process."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coterie_trainers.backends.local import channel
from coterie_trainers.backends.local.device import Device, environment
from coterie_trainers.backends.local.processes import GuardedProcess


@dataclass(frozen=True, slots=True)
class TrainerPlan:
    """What one trainer process needs to know; it gets this as JSON."""

    policy: str
    model: str
    """The Hugging Face folder that it starts from."""
    weight_socket: str
    """Where its sender listens when weights go to the server."""
    shared_memory: str
    """The first part of the names of the shared memory that it makes."""
    rendezvous: str
    """A file through which torch.distributed finds its peers; here there are none."""
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip_grad: float
    loss: Mapping[str, Any]
    """The section ``loss`` of the configuration."""
    horizon: int
    """What the sums over tokens are divided by in ``seq-mean-token-sum-norm``."""
    critic: Mapping[str, Any] | None
    """The section ``critic``, its model a folder; None without a critic."""
    max_tokens_per_pass: int
    seed: int
    on_cpu: bool
    schedule: Mapping[str, Any] = field(default_factory=dict)
    """The policy's section ``schedule``."""
    adapter: Mapping[str, Any] | None = None
    """The section ``adapter`` of all its policies; None where the one policy is trained whole."""
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """With adapters, policy → its section of the configuration, whose rates and limits count; else empty."""
    verl: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More of verl's own settings, as ``verl_overrides.py`` knows them."""


class Trainer:
    """A running trainer process. Its calls block; each message is answered by one message."""

    def __init__(self, plan: TrainerPlan, *, device: Device, runtime: Path, log: Path, threads: int) -> None:
        """Start it; ``wait_ready`` tells when its model is loaded."""
        self._channel, theirs = socket.socketpair()
        self._one_at_a_time = threading.Lock()
        runtime.mkdir(parents=True, exist_ok=True)
        variables = environment(device, str(runtime), threads)
        variables |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        # Never used: the rendezvous is a file. verl only insists that they are set.
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
        variables |= {"DIST_INIT_METHOD": f"file://{plan.rendezvous}"}
        # response_engine.py registers itself under this vendor.
        variables |= {"VERL_ENGINE_VENDOR": "coterie"}
        descriptor = theirs.detach()
        module = "coterie_trainers.backends.local.trainer_process"
        self.process = GuardedProcess(
            f"the trainer of policy {plan.policy!r}",
            [sys.executable, "-m", module, str(descriptor), json.dumps(asdict(plan))],
            environment=variables,
            log=log,
            remove=[str(runtime), f"/dev/shm/{plan.shared_memory}*", str(runtime.parent)],  # noqa: S108 - that is where Linux keeps it
            pass_fd=descriptor,
        )

    def wait_ready(self, deadline: float) -> None:
        """Wait until its model is loaded.

        Args:
            deadline: In ``time.monotonic`` seconds.

        Raises:
            BackendError: it ended, or the deadline passed.
        """
        with self._one_at_a_time:
            self._receive("start (backend.start_seconds)", max(0.1, deadline - time.monotonic()))

    def call(self, operation: str, *, within: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Let it do something.

        Args:
            operation: A method's name of ``verl_engine.PolicyTrainer``.
            within: How many seconds it may take; None waits as long as the process lives.
            arguments: The method's arguments, as JSON.

        Raises:
            BackendError: it failed, ended, or took too long.
        """
        with self._one_at_a_time:
            try:
                self._channel.settimeout(within)
                channel.send(self._channel, {"operation": operation, "arguments": arguments})
            except OSError as error:
                raise self._ended() from error
            return self._receive(operation, within)

    def stop(self) -> None:
        """End it. Safe to call twice."""
        self._channel.close()
        self.process.stop()

    def _receive(self, operation: str, seconds: float | None) -> dict[str, Any]:
        try:
            self._channel.settimeout(seconds)
            answer = channel.receive(self._channel)
        except TimeoutError as error:
            raise self.process.failure(f"did not finish {operation!r} within {seconds:.0f} s") from error
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if "error" in answer:
            raise self.process.failure(f"failed at {operation!r}: {answer['error']}")
        return answer

    def _ended(self) -> Exception:
        limit = time.monotonic() + 5
        while self.process.exit_code is None and time.monotonic() < limit:
            time.sleep(0.02)
        return self.process.failure(f"ended with exit code {self.process.exit_code}")
