"""The driver's side of the process that talks to Ray: started, asked, stopped. Ray and torch stay out of the driver."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from coterie.errors import BackendError, ConfigError
from coterie_trainers.backends.local import channel
from coterie_trainers.backends.local.device import Device, environment
from coterie_trainers.backends.local.processes import GuardedProcess
from coterie_trainers.backends.ray.placement import Placement

_CLOSE_SECONDS = 30.0
_SLACK_SECONDS = 15.0
"""How much later than the process itself the driver gives up on it."""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What the process needs to know; it gets this as JSON."""

    address: str | None
    """The cluster to join; None starts one on this machine."""
    placements: Mapping[str, Placement]
    """Policy → what it asks for."""
    verl: Mapping[str, Mapping[str, Any]]
    """The configuration's ``backend.verl``."""
    calls: str
    """The path of the socket for calls."""
    shared_memory: str
    """First part of the names of shared memory."""
    device: str
    threads: int
    """Threads of one tensor operation on a CPU."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` wrote."""
        content = json.loads(text)
        placements = {policy: Placement(**one) for policy, one in content.pop("placements").items()}
        return cls(placements=placements, **content)

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self))


class Cluster:
    """A running cluster process."""

    def __init__(
        self,
        placements: Mapping[str, Placement],
        *,
        address: str | None,
        verl: Mapping[str, Mapping[str, Any]],
        device: Device,
        runtime: Path,
        log: Path,
    ) -> None:
        """Start the process; ``wait_ready`` tells when the cluster is there."""
        self.shared_memory = f"coterie-{secrets.token_hex(6)}"
        ranks = sum(one.ranks for one in placements.values())
        self._plan = ClusterPlan(
            address=address,
            placements=placements,
            verl=verl,
            calls=str(runtime / "calls"),
            shared_memory=self.shared_memory,
            device=device,
            threads=max(1, len(os.sched_getaffinity(0)) // ranks),
        )
        self._control, theirs = socket.socketpair()
        variables = environment(device, str(runtime), self._plan.threads) | {"RAY_COLOR_PREFIX": "0"}
        if address is None:
            # By default Ray's workers, and so the servers, yield to everything else on the machine, agents included.
            variables = _with_token_of_its_own(variables, runtime / "ray-token") | {"RAY_worker_niceness": "0"}
        else:
            # Where Ray notes the cluster that "auto" means; our own temporary files lie elsewhere.
            variables.setdefault("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - Ray's own choice
        descriptor = theirs.detach()
        self.process = GuardedProcess(
            "the process that talks to Ray",
            [
                sys.executable,
                "-m",
                "coterie_trainers.backends.ray.cluster_process",
                str(descriptor),
                self._plan.to_json(),
            ],
            environment=variables,
            log=log,
            remove=[str(runtime / "*"), f"/dev/shm/{self.shared_memory}*", str(runtime)],  # noqa: S108 - that is where Linux keeps it
            pass_fd=descriptor,
        )

    def wait_ready(self, deadline: float) -> None:
        """Wait until it has a cluster with room.

        Args:
            deadline: In ``time.monotonic`` seconds.

        Raises:
            ConfigError: a setting cannot be met.
            BackendError: it ended, or the deadline passed.
        """
        self._control.settimeout(max(0.1, deadline - time.monotonic()))
        answer = self.received(self._control, "did not have a cluster (backend.start_seconds)")
        _checked(answer, self.process, "the Ray cluster could not be had")

    def connect(self) -> Connection:
        """A connection for one part's calls."""
        return Connection(self, self._plan.calls)

    def stop(self) -> None:
        """End it, with all that it placed on the cluster. Safe to call twice."""
        with contextlib.suppress(OSError, EOFError):
            self._control.settimeout(_CLOSE_SECONDS)
            channel.send(self._control, {"close": True})
            channel.receive(self._control)
        self._control.close()
        self.process.stop()

    def received(self, connection: socket.socket, late: str) -> dict[str, Any]:
        """One message. Raises a BackendError if the process ended, or with what is said of it if the socket's time is up."""
        try:
            return channel.receive(connection)
        except TimeoutError as error:
            raise self.process.failure(f"{late} in time") from error
        except (EOFError, OSError) as error:
            limit = time.monotonic() + 5
            while self.process.exit_code is None and time.monotonic() < limit:
                time.sleep(0.02)
            raise self.process.failure(f"ended with exit code {self.process.exit_code}") from error


class Connection:
    """Calls of the cluster process, one after the other; each is answered by one message."""

    def __init__(self, cluster: Cluster, path: str) -> None:
        self._cluster = cluster
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._one_at_a_time = threading.Lock()

    def call(self, what: str, operation: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """Let it do something.

        Args:
            what: What is said of a failure, such as ``the ranks of policy 'team' failed at 'update'``.
            operation: A method's name of ``PlacedPolicies``.
            arguments: The method's arguments, as JSON.
            seconds: How long it may take by its own clock; the driver waits a little longer.

        Raises:
            BackendError: it failed, ended, or took too long.
        """
        with self._one_at_a_time:
            self._socket.settimeout(seconds + _SLACK_SECONDS)
            with contextlib.suppress(OSError):  # That it is gone is told by what is received.
                channel.send(self._socket, {"operation": operation, "arguments": dict(arguments)})
            answer = self._cluster.received(self._socket, "did not answer")
        return _checked(answer, self._cluster.process, what).get("result")

    def close(self) -> None:
        """No more calls; who waits for one's answer is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _checked(answer: dict[str, Any], process: GuardedProcess, what: str) -> dict[str, Any]:
    if "error" not in answer:
        return answer
    if answer["kind"] == "ConfigError":
        raise ConfigError(answer["error"])
    raise BackendError(f"{what}: {answer['error']}\nThe log is {process.log}.")


def _with_token_of_its_own(variables: Mapping[str, str], file: Path) -> dict[str, str]:
    """A cluster of our own is closed to other users of this machine, and leaves their tokens alone."""
    file.write_text(secrets.token_hex(32))
    file.chmod(0o600)
    kept = {name: value for name, value in variables.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
