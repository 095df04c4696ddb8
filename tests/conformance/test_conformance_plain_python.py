"""The described team in plain Python is recorded as it should be."""

from __future__ import annotations

from typing import Any

from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TeamSetting


class TestPlainPython(PluginConformance):
    framework = "openai"
    instrumentor = "coterie.capture.zero_code:CaptureInstrumentor"

    def build(self, setting: TeamSetting) -> Any:
        from plain_python_team import team_of

        return team_of(setting)

    def play(self, program: Any) -> None:
        program.run()

    async def play_async(self, program: Any) -> None:
        await program.run_async()
