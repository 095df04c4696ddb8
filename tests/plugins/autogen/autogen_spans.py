"""Attempts against a scripted server, and readers of the spans that come of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.scope import AttemptScope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span

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


def scope_of(server: ScriptedModel, sink: ListSink, **fields: Any) -> AttemptScope:
    """An attempt whose calls ask the scripted server for token ids."""
    endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
    return scope_for_test(sink, endpoints={"team": endpoint}, **fields)


def outline(spans: list[Span]) -> list[str]:
    """Each span as ``> > operation subject path``, parents before children, siblings by start."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(children.get(parent, []), key=lambda span: span.start_ns):
            operation = span.attributes.get(names.OPERATION, span.name)
            subject = span.attributes.get(names.TOOL_NAME) or span.attributes.get(names.WORKFLOW_NAME)
            words = ["> " * depth + operation, subject, span.attributes.get(names.AGENT_PATH)]
            yield " ".join(word for word in words if word)
            yield from lines(span.span_id, depth + 1)

    return list(lines(None, 0))


def edges(spans: list[Span]) -> list[tuple[str, str, str]]:
    """All (kind, source, target) as an episode has them, in order of time."""
    return [(edge.kind.value, edge.source, edge.target) for edge in episode(spans).edges]


def episode(spans: list[Span]) -> Episode:
    return build_episode("t1", "at-test", "ro-test", spans, ())


def paths(sink: ListSink) -> list[str]:
    """The agent path of each LLM call, in order of start."""
    return [span.attributes[names.AGENT_PATH] for span in sorted(sink.of(names.CHAT), key=lambda span: span.start_ns)]


def last_text(body: dict[str, Any]) -> str:
    """The text of a request's last message."""
    return str(body["messages"][-1]["content"])


def system_text(body: dict[str, Any]) -> str:
    """The text of a request's first message."""
    return str(body["messages"][0]["content"])
