"""The described team in AutoGen is recorded as it should be."""

from __future__ import annotations

from typing import Any

from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TeamSetting


class TestAutoGen(PluginConformance):
    framework = "autogen_agentchat"
    instrumentor = "coterie_autogen:AutoGenInstrumentor"
    patches = ("autogen_agentchat", "autogen_core", "autogen_ext")
    openinference = "openinference.instrumentation.autogen_agentchat:AutogenAgentChatInstrumentor"

    def build(self, setting: TeamSetting) -> Any:
        from autogen_team import Program

        return Program(setting)

    async def play_async(self, program: Any) -> None:
        await program.run()
