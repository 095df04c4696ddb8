"""The described team in LangGraph is recorded as it should be."""

from __future__ import annotations

from typing import Any

from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TeamSetting


class TestLangGraph(PluginConformance):
    framework = "langgraph"
    instrumentor = "coterie_langchain:LangChainInstrumentor"
    patches = ("langchain", "langchain_core")
    openinference = "openinference.instrumentation.langchain:LangChainInstrumentor"

    def build(self, setting: TeamSetting) -> Any:
        from langchain_team import team_of

        return team_of(setting)

    def play(self, program: Any) -> None:
        from langchain_team import BEGINNING

        program.invoke(BEGINNING)

    async def play_async(self, program: Any) -> None:
        from langchain_team import BEGINNING

        await program.ainvoke(BEGINNING)
