"""What an episode lacks, because whoever recorded it did not write it down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.episodes import Edge, ToolCall, Turn


UNKNOWN_AGENT = "agent"
"""The name of an agent that no span names."""


class Lack(StrEnum):
    """A thing that an episode should have."""

    LLM_CALLS = "llm_calls"
    """Agents or tools were seen and not one LLM call."""
    AGENT_NAMES = "agent_names"
    """Turns of which no span names the agent."""
    MESSAGES = "messages"
    """Turns without the messages that were sent."""
    RESPONSES = "responses"
    """Turns without what came back."""
    TOKEN_IDS = "token_ids"  # noqa: S105 - no password
    """Turns without the token ids of prompt and response."""
    LOGPROBS = "logprobs"
    """Turns without one log-probability a response token."""
    EDGES = "edges"
    """Several agents made calls, and no span tells how one came after another."""
    TOOL_ARGUMENTS = "tool_arguments"
    """Tool calls without arguments."""
    TOOL_RESULTS = "tool_results"
    """Tool calls without a result."""

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence."""
        return _ADVICE[self]


_CONTENT = (
    "Let the tracer record content: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only for OpenTelemetry's "
    "packages, TRACELOOP_TRACE_CONTENT=true for openllmetry, OPENINFERENCE_HIDE_INPUTS and _OUTPUTS unset for OpenInference."
)

_ADVICE = {
    Lack.LLM_CALLS: "Switch on an instrumentor for the model client too, such as the one for the OpenAI SDK.",
    Lack.AGENT_NAMES: "Give the agents names and switch on the instrumentor of the agent framework, not of the model "
    "client alone; or record with coterie.instrument().",
    Lack.MESSAGES: _CONTENT,
    Lack.RESPONSES: _CONTENT,
    Lack.TOKEN_IDS: "Record with coterie.instrument() against a server that returns token ids: without them these turns "
    "serve prompts and reports, not weights.",
    Lack.LOGPROBS: "Record with coterie.instrument() against a server that returns log-probabilities.",
    Lack.EDGES: "There may have been none. Some tracers do not write hand-offs and delegations: record with "
    "coterie.instrument() to be sure.",
    Lack.TOOL_ARGUMENTS: _CONTENT,
    Lack.TOOL_RESULTS: _CONTENT,
}


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that an episode lacks, and how often."""

    what: Lack
    count: int
    """How many turns, tool calls or agents lack it."""
    of: int
    """Out of how many."""

    def __str__(self) -> str:
        return f"{self.what.value}: {self.count} of {self.of}. {self.what.advice}"


def missing_in(
    turns: Sequence[Turn], edges: Sequence[Edge], tool_calls: Sequence[ToolCall], *, agents: int, foreign: bool
) -> tuple[Missing, ...]:
    """What an episode lacks.

    ``agents`` is the number of agents that were seen, with a call or without. Only where another tracer's spans were
    read (``foreign``) does it count that no edge is told, or a tool call's arguments or result: ours tells what there is.
    """
    return tuple(
        Missing(what, count, of) for what, count, of in _counted(turns, edges, tool_calls, agents, foreign) if count
    )


def _counted(
    turns: Sequence[Turn], edges: Sequence[Edge], tool_calls: Sequence[ToolCall], agents: int, foreign: bool
) -> Iterator[tuple[Lack, int, int]]:
    ended_well = [turn for turn in turns if turn.error is None]
    yield Lack.AGENT_NAMES, sum(turn.agent == UNKNOWN_AGENT for turn in turns), len(turns)
    yield Lack.MESSAGES, sum(not turn.messages for turn in turns), len(turns)
    yield Lack.RESPONSES, sum(not turn.output for turn in ended_well), len(ended_well)
    yield Lack.TOKEN_IDS, sum(not (turn.prompt_ids and turn.response_ids) for turn in ended_well), len(ended_well)
    yield Lack.LOGPROBS, sum(turn.logprobs is None for turn in ended_well), len(ended_well)
    if not foreign:
        return
    yield Lack.LLM_CALLS, agents if not turns else 0, agents
    acting = len({turn.agent for turn in turns})
    yield Lack.EDGES, acting if acting > 1 and not edges else 0, acting
    yield Lack.TOOL_ARGUMENTS, sum(not call.arguments for call in tool_calls), len(tool_calls)
    yield Lack.TOOL_RESULTS, sum(not call.result and call.error is None for call in tool_calls), len(tool_calls)
