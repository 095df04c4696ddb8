"""The described team in the OpenAI Agents SDK is recorded as it should be, with each of its two model classes."""

from __future__ import annotations

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
    def _untraced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The SDK sends its own traces nowhere."""
        monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")

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


class TestChatCompletionsModel(OpenAIAgents):
    model_class = "OpenAIChatCompletionsModel"
