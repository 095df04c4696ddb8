"""A backend around the tiny model, calls of it through the openai SDK, and rows made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from coterie.interfaces import TrainingRow
from coterie.vocabulary import Endpoint
from coterie_trainers import config
from coterie_trainers.backends.local import LocalBackend

SETTINGS = config.LocalBackend(max_model_len=256, max_num_seqs=32, sync_seconds=20.0)
LOSS = config.Loss()


def make_backend(folder: Path, model: Path, **settings: Any) -> LocalBackend:
    policies = {"team": config.Policy(model=str(model), learning_rate=5e-3)}
    return LocalBackend(
        policies, SETTINGS.model_copy(update=settings), LOSS, config.Sampling(max_tokens=12), folder=folder, seed=0
    )


@dataclass(frozen=True)
class Answer:
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    version: int
    version_end: int

    def row(self, advantage: float = 0.0) -> TrainingRow:
        size = len(self.token_ids)
        return TrainingRow(
            policy="team",
            rollout_id="ro-1",
            role="writer",
            call_ids=("call-1",),
            prompt_ids=self.prompt_ids,
            response_ids=self.token_ids,
            response_mask=(1,) * size,
            rollout_logprobs=self.logprobs,
            advantages=(advantage,) * size,
            policy_version=self.version,
        )


class Caller:
    """Asks the endpoint as an agent would."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.model = endpoint.model
        self.client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="none", max_retries=0, timeout=60)

    async def ask(self, text: str, max_tokens: int = 12, temperature: float = 1.0, *, model: str = "") -> Answer:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=model or self.model,
            messages=[{"role": "user", "content": text}],
            max_tokens=max_tokens,
            temperature=temperature,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        parsed: Any = raw.parse()
        choice = parsed.choices[0]
        return Answer(
            tuple(parsed.prompt_token_ids),
            tuple(choice.token_ids),
            tuple(token.logprob for token in choice.logprobs.content),
            choice.message.content or "",
            int(raw.headers["x-coterie-policy-version"]),
            int(raw.headers["x-coterie-policy-version-end"]),
        )


def changed(row: TrainingRow, **fields: Any) -> TrainingRow:
    return replace(row, **fields)


def reference_logprobs(folder: Path, answers: Sequence[Answer]) -> list[list[float]]:
    """Log-probabilities of the answers under the model in a Hugging Face folder, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    found = []
    for answer in answers:
        ids = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, len(answer.prompt_ids) - 1 : -1]
        found.append(logprobs.gather(-1, torch.tensor(answer.token_ids)[:, None]).squeeze(-1).tolist())
    return found


def largest_difference(answers: Sequence[Answer], reference: Sequence[Sequence[float]]) -> float:
    pairs = zip(answers, reference, strict=True)
    return max(abs(a - b) for answer, wanted in pairs for a, b in zip(answer.logprobs, wanted, strict=True))
