"""verl's engine and a stock ``vllm serve`` a policy, in one process tree without Ray. ``docs/backends.md`` explains it.

``backend.py`` is the driver's side. It starts ``server.py`` (vLLM with the gate of ``gate.py`` and the receiver of
``weight_receiver.py``) and ``trainer.py`` (``trainer_process.py`` around ``verl_engine.py``) as guarded processes.
Nothing heavy is imported before it is used: vLLM and verl load modules of this package as plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_trainers.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]


def __getattr__(name: str) -> Any:
    if name == "LocalBackend":
        from coterie_trainers.backends.local.backend import LocalBackend

        return LocalBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
