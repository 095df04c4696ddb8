"""verl's FSDP engine for value models, with the attention that the policy has.

verl 0.9.1 loads every value model with flash-attention, which a CPU has not. As ``response_engine.py``, this is registered
under a vendor of its own, so other users of verl do not get it.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from transformers import AutoModelForTokenClassification
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithValueHead

from coterie_trainers.backends.local.response_engine import VENDOR


@EngineRegistry.register(model_type="value_model", backend="fsdp2", device="cuda", vendor=VENDOR)
class ValueEngine(FSDPEngineWithValueHead):  # type: ignore[misc]
    """Computes ``values``, one a token."""

    def _build_module(self) -> Any:
        # verl looks its loader up when it builds; for that moment it finds ours.
        with mock.patch("verl.utils.model.load_valuehead_model", _load):
            return super()._build_module()


def _load(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )
