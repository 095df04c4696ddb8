"""The described team in the OpenAI Agents SDK is recorded as it should be, with each of its two model classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TASK, TeamSetting


class OpenAIAgents(PluginConformance):
    framework = "agents"
    instrumentor = "coterie_openai_sdk:OpenAIAgentsInstrumentor"
    openinference = "openinference.instrumentation.openai_agents:OpenAIAgentsInstrumentor"
    model_class: str

    @pytest.fixture(autouse=True)
    def _traces_stay_here(self) -> Iterator[None]:
        """The SDK traces, but sends its traces nowhere."""
        # Not ``agents`` alone: a folder of that name on the path passes for a package.
        pytest.importorskip("agents.run")
        import agents

        agents.set_trace_processors([])
        agents.set_tracing_disabled(False)
        yield
        agents.set_trace_processors([])

    def build(self, setting: TeamSetting) -> Any:
        import agents
        from openai_sdk_team import team_of

        return team_of(setting, getattr(agents, self.model_class)), setting.streamed

    def play(self, program: Any) -> None:
        from agents import Runner

        team, streamed = program
        if streamed:
            super().play(program)
        else:
            Runner.run_sync(team, TASK)

    async def play_async(self, program: Any) -> None:
        from agents import Runner

        team, streamed = program
        if not streamed:
            await Runner.run(team, TASK)
            return
        async for _ in Runner.run_streamed(team, TASK).stream_events():
            pass


class TestResponsesModel(OpenAIAgents):
    model_class = "OpenAIResponsesModel"


class TestChatCompletionsModelUntraced(OpenAIAgents):
    model_class = "OpenAIChatCompletionsModel"
    openinference = None  # It hears of nothing then.

    @pytest.fixture(autouse=True)
    def _untraced(self, _traces_stay_here: None) -> Iterator[None]:
        """With the SDK's tracing switched off."""
        import agents

        agents.set_tracing_disabled(True)
        yield
        agents.set_tracing_disabled(False)
