"""Models and agents against a scripted server, and readers of its requests and of the spans that come of them."""

from __future__ import annotations

import json
from typing import Any

import reading_spans
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from openai import AsyncOpenAI

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.testing import ListSink, ScriptedModel
from coterie.vocabulary import Span

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


def episode_of(sink: ListSink) -> Episode:
    return build_episode("t", "at-test", "ro-test", sink.spans, sink.rewards)


def edges(sink: ListSink) -> list[tuple[str, str, str]]:
    return [(edge.kind.value, edge.source, edge.target) for edge in episode_of(sink).edges]


def outline(spans: list[Span]) -> list[str]:
    """The outline of our spans among all."""
    return reading_spans.outline([span for span in spans if names.OPERATION in span.attributes])


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
