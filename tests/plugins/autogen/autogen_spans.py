"""AutoGen's client of a scripted server, and readers of the episode that comes of it."""

from __future__ import annotations

from typing import Any

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.testing import ListSink, ScriptedModel
from coterie.vocabulary import Span

MODEL_INFO: Any = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": False,
    "family": "unknown",
}


def model_client(server: ScriptedModel) -> Any:
    """AutoGen's client of the server."""
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    return OpenAIChatCompletionClient(
        model="scripted", base_url=server.base_url, api_key="none", max_retries=0, timeout=30, model_info=MODEL_INFO
    )


def edges(spans: list[Span]) -> list[tuple[str, str, str]]:
    """All (kind, source, target) as an episode has them, in order of time."""
    return [(edge.kind.value, edge.source, edge.target) for edge in episode(spans).edges]


def episode(spans: list[Span]) -> Episode:
    return build_episode("t1", "at-test", "ro-test", spans, ())


def paths(sink: ListSink) -> list[str]:
    """The agent path of each LLM call, in order of start."""
    return [span.attributes[names.AGENT_PATH] for span in sorted(sink.of(names.CHAT), key=lambda span: span.start_ns)]
