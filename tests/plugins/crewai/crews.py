"""Agents and crews against a scripted server, and readers of its requests."""

from __future__ import annotations

import re
from typing import Any

from crewai import LLM, Agent, Crew, Task

from coterie.testing import ScriptedModel


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


def said_by(body: dict[str, Any]) -> str:
    """The agent whose mark a request carries first."""
    found = re.search(r"\[([\w ]+)\]", str(body["messages"]))
    return found[1] if found else ""


def tool_results(body: dict[str, Any]) -> list[str]:
    """What tools gave in the conversation so far."""
    return [str(message["content"]) for message in body["messages"] if message["role"] == "tool"]
