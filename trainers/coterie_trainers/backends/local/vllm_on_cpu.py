"""A vLLM plugin that keeps weights replaceable on a CPU. It does nothing unless ``VERL_PLATFORM`` is ``cpu``.

On a CPU vLLM packs each linear layer's weight for oneDNN and drops the original, so that nothing could be loaded into
it again. This keeps the original; verl packs anew after each change of weights.
"""

from __future__ import annotations

import os
from typing import Any


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once."""
    if os.environ.get("VERL_PLATFORM") != "cpu":
        return
    from vllm.model_executor.layers import linear, utils

    original = utils.dispatch_cpu_unquantized_gemm
    if getattr(original, "keeps_weight", False):
        return

    def dispatch_and_keep_weight(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001 - vLLM's signature
        original(layer, remove_weight=False)

    dispatch_and_keep_weight.keeps_weight = True  # type: ignore[attr-defined]
    utils.dispatch_cpu_unquantized_gemm = dispatch_and_keep_weight
    if hasattr(linear, "dispatch_cpu_unquantized_gemm"):
        linear.dispatch_cpu_unquantized_gemm = dispatch_and_keep_weight
