"""A Ray cluster of logical GPUs, a backend of two policies on it, and rows that no policy has sampled."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from left_behind import LeftBehind

from coterie.interfaces import TrainingRow
from coterie_trainers import config
from coterie_trainers.backends.local.processes import GuardedProcess
from coterie_trainers.backends.ray import RayBackend

GPUS = 6


class HeadNode:
    """A cluster that was there before the backend, with a token of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        code = f"""
            import sys, time, ray
            ray.init(address="local", num_gpus={GPUS}, num_cpus=16, include_dashboard=False,
                     object_store_memory=300_000_000, _temp_dir={str(folder / "r")!r}, _node_ip_address="127.0.0.1")
            print("address", ray.get_runtime_context().gcs_address, flush=True)
            time.sleep(900)
        """
        self._process = GuardedProcess(
            "the cluster of the tests",
            [sys.executable, "-c", textwrap.dedent(code)],
            environment={
                **os.environ,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(self.token),
                "RAY_worker_niceness": "0",
            },
            log=folder.parent / "head.log",
            remove=[str(folder)],
        )
        self._log = folder.parent / "head.log"

    def address(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self._process.require_alive()
            for line in self._log.read_text().splitlines():
                if line.startswith("address "):
                    return line.split()[1]
            time.sleep(0.1)
        raise self._process.failure("has no address")

    def stop(self) -> None:
        self._process.stop()
        self._log.unlink(missing_ok=True)


def make_ray_backend(folder: Path, model: Path, **settings: Any) -> RayBackend:
    """Two policies that begin alike: ``pair`` has two ranks and two replicas, ``lone`` one of each."""
    policies = {name: config.Policy(model=str(model), roles=[name], learning_rate=1e-3) for name in ("pair", "lone")}
    common = {"max_model_len": 256, "max_num_seqs": 32, "sync_seconds": 40.0}
    placed = {"ranks": {"pair": 2}, "replicas": {"pair": 2}}
    backend = config.RayBackend.model_validate(common | placed | settings)
    return RayBackend(policies, backend, config.Loss(mini_batches=2), config.Sampling(), folder=folder, seed=0)


def rows(policy: str, seed: int, count: int = 11) -> list[TrainingRow]:
    source = random.Random(seed)
    made = []
    for number in range(count):
        prompt = tuple(source.randrange(3, 100) for _ in range(source.randint(3, 20)))
        response = tuple(source.randrange(3, 100) for _ in range(source.randint(2, 40)))
        size, advantage = len(response), source.gauss(0, 1)
        mask = tuple(int(place % 5 != number % 7) for place in range(size))
        logprobs = tuple(-4.5 * sampled for sampled in mask)
        made.append(
            TrainingRow(
                policy,
                f"ro-{number}",
                policy,
                ("c",),
                prompt,
                response,
                mask,
                logprobs,
                (advantage,) * size,
                1 / (1 + number % 3),
            )
        )
    return made


def of_the_run(left_behind: LeftBehind) -> dict[int, str]:
    """Processes that serve or train, as against those of the cluster itself."""
    marks = ("vllm", "EngineCore", "ray::Rank", "ray::Replica", "cluster_process", "guard.py")
    found = left_behind.processes()
    for pid in found:
        with contextlib.suppress(OSError):
            found[pid] += Path(f"/proc/{pid}/comm").read_text()
    return {
        pid: command
        for pid, command in found.items()
        if any(mark in command for mark in marks) and "head.log" not in command and "address=" not in command
    }
