"""What the spans of one run of the described team really hold, whoever made them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from coterie.testing.described_team import APPROVES, ASKS, HANDS_OVER, HIDDEN_WORD, REPORTS, RUNS
from coterie.vocabulary import Span

SAYS = {ASKS: "planner", RUNS: "coder", REPORTS: "coder", HANDS_OVER: "planner", APPROVES: "reviewer"}
"""What the model answers → who asked."""
COLUMNS = {
    "calls": "LLM calls with a span of their own",
    "agents": "of these, that name their agent",
    "prompts": "with the system prompt",
    "answers": "with the answer's text",
    "tools": "with the tools offered",
    "usage": "with token counts",
    "token_ids": "with the answer's token ids, as a list or in raw text",
    "logprobs": "with log-probs",
    "tool_calls": "tool calls with arguments and result",
    "handoffs": "hand-offs that name who takes over: 1 if there is any",
}
"""Figure → what it counts, in one run of five LLM calls, one plain tool call, one delegation and one hand-off."""

_LLM = re.compile(r"^(llm|chat|generation|response|openai\.chat\.completion|completion)$", re.IGNORECASE)
_KIND_KEYS = ("openinference.span.kind", "gen_ai.operation.name", "agentops.span.kind", "traceloop.span.kind")


def records_in(spans: Iterable[ReadableSpan | Span]) -> dict[str, int]:
    """Count what there is of each of ``COLUMNS`` in the spans of one run of the described team."""
    every = list(spans)
    calls = [span for span in every if _is_call(span)]
    found = dict.fromkeys(COLUMNS, 0)
    found["calls"] = len(calls)
    for span in calls:
        text, answered = _text(span), _answered(span)
        found["prompts"] += HIDDEN_WORD in text
        found["answers"] += answered is not None
        found["agents"] += _names_agent(span, answered)
        found["tools"] += "run_tests" in text and '"path"' in text.replace("\\", "")
        found["usage"] += any(re.search(r"usage|token_count", key) for key in _attributes(span))
        found["token_ids"] += _holds_ids(span, text)
        found["logprobs"] += "logprob" in text.lower() and re.search(r"-0\.\d+", text) is not None
    for span in every:
        if span not in calls:
            text = _text(span)
            is_tool = bool(_kinds(span) & {"tool", "execute_tool"}) or "function" in span.name.lower()
            found["tool_calls"] += is_tool and "team.py" in text and "3 passed in" in text and HIDDEN_WORD not in text
    found["handoffs"] = int(any(map(_is_handoff, every)))
    return found


def _is_call(span: ReadableSpan | Span) -> bool:
    kinds = _kinds(span)
    if kinds:
        return bool(kinds & {"llm", "chat", "generation", "llm_call"})
    return _LLM.match(span.name) is not None


def _kinds(span: ReadableSpan | Span) -> set[str]:
    return {str(value).lower() for key, value in _attributes(span).items() if key in _KIND_KEYS}


def _attributes(span: ReadableSpan | Span) -> Mapping[str, Any]:
    return span.attributes or {}


def _text(span: ReadableSpan | Span) -> str:
    return json.dumps(dict(_attributes(span)), ensure_ascii=False, default=str)


def _answered(span: ReadableSpan | Span) -> str | None:
    """Which of the five answers a call's span holds as what came back."""
    outputs = [
        str(value)
        for key, value in _attributes(span).items()
        if re.search(r"output|completion|response|result", key) and isinstance(value, str)
    ]
    return next((said for said in SAYS if any(said in output for output in outputs)), None)


def _names_agent(span: ReadableSpan | Span, answered: str | None) -> bool:
    role = SAYS.get(answered or "")
    return role is not None and any(
        "agent" in key.lower() and str(value).lower().split("_")[0] == role for key, value in _attributes(span).items()
    )


def _holds_ids(span: ReadableSpan | Span, text: str) -> bool:
    lists = (value for value in _attributes(span).values() if isinstance(value, list | tuple))
    if any(len(value) > 3 and all(type(one) is int for one in value) for value in lists):
        return True
    return re.search(r"""[^_]token_ids["']?[:=]\s*\[\d""", text.replace("\\", "")) is not None


def _is_handoff(span: ReadableSpan | Span) -> bool:
    for event in span.events:
        values = {str(value) for value in (event.attributes or {}).values()}
        if "handoff" in values and {"planner", "reviewer"} <= {value.lower() for value in values}:
            return True
    named = {str(value).lower() for value in _attributes(span).values() if isinstance(value, str)}
    about = " ".join((span.name, *_kinds(span), *_attributes(span))).lower()
    return "handoff" in about and "reviewer" in named | set(re.findall(r"\w+", span.name.lower()))
