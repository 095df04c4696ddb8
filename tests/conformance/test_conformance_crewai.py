"""The described team in CrewAI is recorded as it should be."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TeamSetting


class TestCrewAI(PluginConformance):
    framework = "crewai"
    instrumentor = "coterie_crewai:CrewAIInstrumentor"
    openinference = "openinference.instrumentation.crewai:CrewAIInstrumentor"

    @pytest.fixture(autouse=True)
    def _quiet(self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
        """CrewAI keeps to itself: no telemetry, no traces of its own, no files at home."""
        monkeypatch.setenv("CREWAI_DISABLE_TELEMETRY", "true")
        monkeypatch.setenv("CREWAI_TRACING_ENABLED", "false")
        monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path_factory.getbasetemp() / "crewai"))

    def build(self, setting: TeamSetting) -> Any:
        from crewai_team import team_of

        return team_of(setting)

    def play(self, program: Any) -> None:
        program.kickoff()

    async def play_async(self, program: Any) -> None:
        await program.akickoff()
