"""Agents and crews against a scripted server, attempts around them, and readers of the spans that come of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from crewai import LLM, Agent, Crew, Task

from coterie import conventions as names
from coterie.scope import AttemptScope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span


def model_at(server: ScriptedModel, **settings: Any) -> LLM:
    values: dict[str, Any] = {"api_key": "sk-none", "max_retries": 0, "timeout": 30} | settings
    return LLM(model="scripted", provider="openai", base_url=server.base_url, **values)


def agent_of(llm: Any, role: str, **settings: Any) -> Agent:
    """An agent whose prompts carry the mark ``[role]``."""
    return Agent(role=role, goal="g", backstory=f"[{role.strip()}]", llm=llm, **settings)


def task_of(agent: Agent | None, name: str = "work", **settings: Any) -> Task:
    values: dict[str, Any] = {"expected_output": "a text"} | settings
    return Task(description=f"Do the {name}.", agent=agent, **values)


def crew_of(*tasks: Task, agents: list[Agent] | None = None, **settings: Any) -> Crew:
    found = agents if agents is not None else [task.agent for task in tasks if task.agent is not None]
    values: dict[str, Any] = {"name": "team"} | settings
    return Crew(agents=list({id(agent): agent for agent in found}.values()), tasks=list(tasks), **values)


def scope_of(server: ScriptedModel, sink: ListSink, **fields: Any) -> AttemptScope:
    """An attempt whose calls ask the scripted server for token ids."""
    endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
    return scope_for_test(sink, endpoints={"team": endpoint}, **fields)


def said_by(body: dict[str, Any]) -> str:
    """The agent whose mark a request carries first."""
    found = re.search(r"\[([\w ]+)\]", str(body["messages"]))
    return found[1] if found else ""


def tool_results(body: dict[str, Any]) -> list[str]:
    """What tools gave in the conversation so far."""
    return [str(message["content"]) for message in body["messages"] if message["role"] == "tool"]


def outline(spans: list[Span]) -> list[str]:
    """Each span as ``> > operation subject path``, parents before children, siblings by start."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(children.get(parent, []), key=lambda span: span.start_ns):
            operation = span.attributes[names.OPERATION]
            subject = span.attributes.get(names.TOOL_NAME) or span.attributes.get(names.WORKFLOW_NAME)
            words = ["> " * depth + operation, subject, span.attributes.get(names.AGENT_PATH)]
            yield " ".join(word for word in words if word)
            yield from lines(span.span_id, depth + 1)

    return list(lines(None, 0))


def edges(spans: list[Span]) -> list[tuple[str, str, str]]:
    """All (kind, source, target) that are written on spans, in order of time."""
    found = [
        (event.time_ns, event.attributes)
        for span in spans
        for event in span.events
        if event.name == names.HANDOFF_EVENT
    ]
    return [
        (about[names.HANDOFF_KIND], about[names.HANDOFF_SOURCE], about[names.HANDOFF_TARGET])
        for _, about in sorted(found, key=lambda pair: pair[0])
    ]
