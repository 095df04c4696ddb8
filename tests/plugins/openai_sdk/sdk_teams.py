"""Models, agents and attempts against a scripted server, and readers of the spans that come of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from openai import AsyncOpenAI

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.scope import AttemptScope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span

MODEL_CLASSES = [OpenAIResponsesModel, OpenAIChatCompletionsModel]


def model_at(server: ScriptedModel, model_class: Any = OpenAIResponsesModel) -> Any:
    return model_class("scripted", AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=30))


def agent(name: str, model: Any, **settings: Any) -> Agent[Any]:
    return Agent(name=name, instructions=f"You are the {name}.", model=model, **settings)


async def run(starting_agent: Agent[Any], given: Any = "go", *, streamed: bool = False, **settings: Any) -> Any:
    """One run to its end, read as a stream or not; gives its result."""
    if not streamed:
        return await Runner.run(starting_agent, given, **settings)
    result = Runner.run_streamed(starting_agent, given, **settings)
    async for _ in result.stream_events():
        pass
    return result


def scope_of(server: ScriptedModel, sink: ListSink, **fields: Any) -> AttemptScope:
    """An attempt whose calls ask the scripted server for token ids."""
    endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
    return scope_for_test(sink, endpoints={"team": endpoint}, **fields)


def episode_of(sink: ListSink) -> Episode:
    return build_episode("t", "at-test", "ro-test", sink.spans, sink.rewards)


def edges(sink: ListSink) -> list[tuple[str, str, str]]:
    return [(edge.kind.value, edge.source, edge.target) for edge in episode_of(sink).edges]


def outline(spans: list[Span]) -> list[str]:
    """Each of our spans as ``> > operation subject path``, parents before children, siblings by start."""
    spans = [span for span in spans if names.OPERATION in span.attributes]
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(children.get(parent, []), key=lambda span: span.start_ns):
            subject = span.attributes.get(names.TOOL_NAME) or span.attributes.get(names.WORKFLOW_NAME)
            words = ["> " * depth + span.attributes[names.OPERATION], subject, span.attributes.get(names.AGENT_PATH)]
            yield " ".join(word for word in words if word)
            yield from lines(span.span_id, depth + 1)

    return list(lines(None, 0))


def who(body: dict[str, Any]) -> str:
    """The agent that makes a request, from its instructions."""
    text = body.get("instructions") or body["messages"][0]["content"]
    return str(text).removeprefix("You are the ").removesuffix(".")


def results(body: dict[str, Any]) -> list[str]:
    """The tool results in a request, in order, whichever API it is for."""
    given = body.get("messages", body.get("input"))
    found = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return [
        str(one.get("content", one.get("output")))
        for one in found
        if one.get("role") == "tool" or one.get("type") == "function_call_output"
    ]


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"content": "", "tool_calls": [{"name": tool, "arguments": json.dumps(arguments)}]}
