"""verl's FSDP engine for language models, with log-probabilities of the response alone.

Registered in verl's engine registry under a vendor of its own, so ``VERL_ENGINE_VENDOR=coterie`` selects it and nobody
else gets it. Without flash-attention verl's own engine normalises the logits of every token, prompts included, one
token at a time; for short prompts and small vocabularies that takes most of the update (``docs/backends.md``).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

VENDOR = "coterie"
"""What ``VERL_ENGINE_VENDOR`` must be for this engine."""


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor=VENDOR)
class ResponseEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """Computes ``log_probs`` and ``entropy`` where the next token belongs to the response, and 0 elsewhere."""

    def prepare_model_outputs(
        self,
        output: Any,
        output_args: dict[str, Any],
        micro_batch: TensorDict,
        logits_processor_func: Any,  # noqa: ARG002 - verl's signature
    ) -> dict[str, torch.Tensor]:
        """Jagged ``log_probs`` and ``entropy``, each as long as prompt and response.

        The entropy has a gradient only where the pass asks for it (``entropy_gradient``): it costs as much memory as the logits.
        """
        logits_RLV = output.logits
        offsets, prompt_lengths = micro_batch["input_ids"].offsets(), micro_batch["prompts"].offsets().diff()
        lengths = offsets.diff()
        place_L = torch.arange(logits_RLV.shape[1], device=logits_RLV.device)
        predicts_RL = (place_L >= prompt_lengths[:, None] - 1) & (place_L < lengths[:, None] - 1)

        logits_NV = logits_RLV.flatten(0, 1).index_select(0, predicts_RL.flatten().nonzero().squeeze(-1)).float()
        if not output_args["temperature_is_one"]:
            response_lengths = lengths - prompt_lengths
            logits_NV = logits_NV / output_args["temperature"].repeat_interleave(response_lengths)[:, None]
        all_log_probs_NV = logits_NV.log_softmax(-1)
        log_probs_N = all_log_probs_NV.gather(-1, micro_batch["responses"].values()[:, None]).squeeze(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(_asked(micro_batch, "entropy_gradient"))):
            entropy_N = -(all_log_probs_NV.exp() * all_log_probs_NV).sum(-1)

        predicts_T = predicts_RL[place_L < lengths[:, None]]

        def jagged(values_N: torch.Tensor) -> torch.Tensor:
            values_T = values_N.new_zeros(predicts_T.shape).masked_scatter(predicts_T, values_N)
            return torch.nested.nested_tensor_from_jagged(values_T, offsets)

        return {"log_probs": jagged(log_probs_N), "entropy": jagged(entropy_N)}


def _asked(micro_batch: TensorDict, name: str) -> Any:
    return tensordict_utils.get_non_tensor_data(data=micro_batch, key=name, default=False)
