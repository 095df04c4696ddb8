"""The programs whose cost is measured: a framework's model client alone, and the described team in its idiom.

The teams are those of the conformance suite, in ``tests/conformance``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.testing.described_team import ROLES, TASK, TeamSetting

Run = Callable[[], None]

PADDING = "Work carefully, say what you did and why, and keep to the style of the code around. "
"""Makes prompts as long as real ones."""
PROMPT_CHARACTERS = 1_500
HISTORY = 8
"""Messages before the last one in the conversation of ``call``."""


@dataclass(frozen=True, slots=True)
class Program:
    """A framework's two programs, made once and run often."""

    call: Run
    """One LLM call by the framework's model client, with a conversation of ten messages and no agent around it."""
    team: Run | None
    """One run of the described team: five LLM calls, three tool calls, three agents. None where there is no framework."""


@dataclass(frozen=True)
class LongPrompts(TeamSetting):
    """A setting whose system prompts are as long as real ones."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Role → system prompt."""
        padding = (PADDING * (PROMPT_CHARACTERS // len(PADDING) + 1))[:PROMPT_CHARACTERS]
        short = TeamSetting(self.base_url, self.name).prompts
        return {role: f"{short[role]} {padding}" for role in ROLES}


def import_framework(name: str) -> None:
    """Import what a framework's program needs, quietly, so that what is switched on afterwards finds it."""
    os.environ |= {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": ""}
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "conformance"))
    __import__({"openai": "openai"}.get(name, f"{name}_team"))
    if name == "openai_sdk":
        import agents

        agents.set_trace_processors([])  # The SDK's own would upload.


def program_of(name: str, base_url: str) -> Program:
    """The programs of a framework, or of the bare OpenAI SDK, against a server."""
    return _PROGRAMS[name](LongPrompts(base_url, model="scripted"))


def _openai(setting: TeamSetting) -> Program:
    from openai import OpenAI

    client = OpenAI(base_url=setting.base_url, api_key=setting.api_key, max_retries=0, timeout=30)
    messages: Any = _conversation(setting)

    def call() -> None:
        client.chat.completions.create(model=setting.model, messages=messages, temperature=0.5)

    return Program(call, None)


def _langchain(setting: TeamSetting) -> Program:
    from langchain_team import BEGINNING, model_of, team_of

    model, team, messages = model_of(setting), team_of(setting), _conversation(setting)
    return Program(lambda: model.invoke(messages) and None, lambda: team.invoke(BEGINNING) and None)


def _autogen(setting: TeamSetting) -> Program:
    import autogen_team
    from autogen_core.models import AssistantMessage, SystemMessage, UserMessage

    loop = asyncio.new_event_loop()
    client = autogen_team.OpenAIChatCompletionClient(
        model=setting.model,
        base_url=setting.base_url,
        api_key=setting.api_key,
        max_retries=0,
        timeout=30,
        model_info=autogen_team.MODEL_INFO,
    )
    # Agents remember, so a team is made for each run; its model client, which is slow to make, is kept.
    autogen_team.OpenAIChatCompletionClient = lambda **_: client
    kinds: dict[str, Any] = {
        "system": lambda text: SystemMessage(content=text),
        "user": lambda text: UserMessage(content=text, source="user"),
        "assistant": lambda text: AssistantMessage(content=text, source="planner"),
    }
    messages = [kinds[message["role"]](message["content"]) for message in _conversation(setting)]
    return Program(
        lambda: loop.run_until_complete(client.create(messages)) and None,
        lambda: loop.run_until_complete(autogen_team.team_of(setting).run(task=TASK)) and None,
    )


def _crewai(setting: TeamSetting) -> Program:
    from crewai.events import crewai_event_bus
    from crewai_team import team_of

    crew, messages = team_of(setting), _conversation(setting)
    llm = crew.agents[0].llm

    def call() -> None:
        llm.call(messages)
        crewai_event_bus.flush()

    def team() -> None:
        crew.kickoff()
        crewai_event_bus.flush()  # Handlers run behind in threads: their time counts, too.

    return Program(call, team)


def _openai_sdk(setting: TeamSetting) -> Program:
    from agents import ModelSettings, OpenAIChatCompletionsModel, Runner, trace
    from agents.models.interface import ModelTracing
    from openai_sdk_team import team_of

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    planner = team_of(setting, OpenAIChatCompletionsModel)
    model, (first, *messages) = planner.model, _conversation(setting)

    async def call() -> None:
        with trace("call"):
            await model.get_response(
                first["content"],
                messages,
                ModelSettings(),
                tools=[],
                output_schema=None,
                handoffs=[],
                tracing=ModelTracing.ENABLED,
                previous_response_id=None,
                conversation_id=None,
                prompt=None,
            )

    return Program(
        lambda: loop.run_until_complete(call()), lambda: loop.run_until_complete(Runner.run(planner, TASK)) and None
    )


_PROGRAMS: Mapping[str, Callable[[TeamSetting], Program]] = {
    "openai": _openai,
    "langchain": _langchain,
    "autogen": _autogen,
    "crewai": _crewai,
    "openai_sdk": _openai_sdk,
}


def _conversation(setting: TeamSetting) -> list[dict[str, str]]:
    """A conversation of the reviewer's, whose answer calls no tool."""
    messages = [{"role": "system", "content": setting.prompts["reviewer"]}]
    for number in range(HISTORY):
        said = f"{number}. " + PADDING * 3
        messages.append({"role": "assistant" if number % 2 else "user", "content": said})
    return [*messages, {"role": "user", "content": TASK}]
