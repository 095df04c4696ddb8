"""What this installation computes on, told without importing torch, and what that means for the environment."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version


class Device(StrEnum):
    """Where weights live."""

    CPU = "cpu"
    """vLLM's CPU build is installed: 32-bit floats, no compilation, weights travel over shared memory."""
    GPU = "gpu"
    """The ordinary vLLM is installed: its own defaults, weights travel over CUDA IPC."""


def installed_device() -> Device:
    """CPU if vLLM's CPU build is installed, else GPU."""
    try:
        return Device.CPU if "+cpu" in version("vllm") else Device.GPU
    except PackageNotFoundError:
        return Device.CPU


def environment(device: Device, runtime: str, threads: int) -> dict[str, str]:
    """The environment of a server or trainer: this process's, without what would lead verl or vLLM astray.

    Args:
        device: What to compute on.
        runtime: A private folder for sockets and temporary files.
        threads: Threads of one tensor operation on a CPU.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_LAUNCHERS}
    return {**kept, **settings(device, threads), "TMPDIR": runtime, "VLLM_RPC_BASE_PATH": runtime}


def settings(device: Device, threads: int) -> dict[str, str]:
    """The environment variables that every server and trainer has, wherever it runs."""
    return {**_QUIET, **_on(device, threads)}


def _on(device: Device, threads: int) -> dict[str, str]:
    if device is Device.GPU:
        return {}
    return {
        "VERL_PLATFORM": "cpu",
        # verl's engines are registered for "cuda"; this is verl's own switch to use them elsewhere.
        "VERL_ENGINE_DEVICE": "cuda",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Waiting OpenMP threads must not spin: agents, server and trainer share the cores, and an update that shares
        # them took twenty times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


_OF_OTHER_LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "disabled",
}
