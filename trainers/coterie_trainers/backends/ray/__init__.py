"""verl's engine and stock ``vllm serve`` processes on a Ray cluster: several GPUs and nodes. ``docs/backends.md`` explains it.

``backend.py`` is the driver's side; ``cluster.py`` starts ``cluster_process.py``, the one process here that talks to Ray. On
the cluster's nodes run ``rank.py``, a training process, and ``replica.py``, which owns a model server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_trainers.backends.ray.backend import RayBackend

__all__ = ["RayBackend"]


def __getattr__(name: str) -> Any:
    if name == "RayBackend":
        from coterie_trainers.backends.ray.backend import RayBackend

        return RayBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
