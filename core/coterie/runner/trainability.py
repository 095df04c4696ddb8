"""Says why an attempt gave nothing to train on. A trainer that gets no tokens must hear of it, and of the likely cause."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from coterie import conventions as c
from coterie.vocabulary import Endpoint, Span, SpanStatus


class UntrainableCause(StrEnum):
    """Why an attempt has no trainable call."""

    NO_CALL = "no_call"
    """No LLM call was seen."""
    CALLS_FAILED = "calls_failed"
    """Every LLM call failed."""
    NO_TOKENS = "no_tokens"
    """Calls were answered, but without token ids and log-probs."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found wrong."""

    cause: UntrainableCause
    text: str
    """What happened, the likely cause, and what to do."""


@dataclass(slots=True)
class CallCount:
    """Counts the LLM calls among the spans of an attempt."""

    calls: int = 0
    failed: int = 0
    trainable: int = 0
    last_error: str = ""
    diverged: str | None = None
    """How the attempt, a replay, departed from its recording."""

    def add(self, span: Span) -> None:
        """Count a span, if it is an LLM call."""
        attributes = span.attributes
        if c.REPLAY_DIVERGED in attributes:
            self.diverged = str(attributes[c.REPLAY_DIVERGED])
        if attributes.get(c.OPERATION) != c.CHAT:
            return
        self.calls += 1
        if span.status is SpanStatus.ERROR or attributes.get(c.ERROR_TYPE):
            self.failed += 1
            self.last_error = f"{attributes.get(c.ERROR_TYPE, 'error')}: {span.status_message}"[:300]
        elif c.ANSWERED_BY not in attributes and all(
            attributes.get(name) for name in (c.PROMPT_TOKENS, c.RESPONSE_TOKENS, c.LOGPROBS)
        ):
            self.trainable += 1


def why_untrainable(count: CallCount, endpoints: Sequence[Endpoint]) -> Finding | None:
    """Why an attempt that made these calls, with these endpoints pinned, is no use to a trainer; None if it is."""
    if count.trainable:
        return None
    if not count.calls:
        return Finding(UntrainableCause.NO_CALL, f"no LLM call was seen. {_why_no_call()}")
    if count.failed == count.calls:
        text = f"all {count.calls} LLM calls failed, the last with {count.last_error}. Is the model server up?"
        return Finding(UntrainableCause.CALLS_FAILED, text)
    answered = count.calls - count.failed
    text = f"{answered} LLM calls were answered, none with token ids and log-probs. {_why_no_tokens(endpoints)}"
    return Finding(UntrainableCause.NO_TOKENS, text)


def _why_no_call() -> str:
    if "openai" not in sys.modules:
        return (
            "The openai SDK, whose calls Coterie captures, was not imported in this process: does the model client "
            "use another SDK, or make its calls in another process? Then send them through an OpenAI-compatible client."
        )
    return (
        "Does the team's model client not use the openai SDK, does it call the model from another process, was the "
        "model answered from a cache, or did the function return before it called its team?"
    )


def _why_no_tokens(endpoints: Sequence[Endpoint]) -> str:
    if not endpoints:
        return (
            "No endpoint is pinned to the rollout, so the calls went where the team's own client points, and token ids "
            "were not asked for. Publish an endpoint resource and pin it in Rollout.resources."
        )
    silent = [endpoint.policy for endpoint in endpoints if not endpoint.token_ids]
    if silent:
        return f"The endpoint of policy {', '.join(silent)} has token_ids=False. Set it to True for training."
    places = ", ".join(dict.fromkeys(endpoint.base_url for endpoint in endpoints))
    return (
        f"The server at {places} was asked for them and gave none, or the calling role has no endpoint there. vLLM "
        "(0.10.2 or later) gives token ids; most hosted APIs do not, and cannot be trained against."
    )
