"""The described team in LangGraph is recorded as it should be, with ``create_agent`` and in graphs made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.assembly import build_episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.testing.canonical import canonical
from coterie.testing.conformance import PluginConformance
from coterie.testing.described_team import TeamSetting, expected_episode


class LangGraphConformance(PluginConformance):
    framework = "langgraph"
    instrumentor = "coterie_langchain:LangChainInstrumentor"
    patches = ("langchain", "langchain_core")
    openinference = "openinference.instrumentation.langchain:LangChainInstrumentor"

    def play(self, program: Any) -> None:
        from langchain_team import BEGINNING

        program.invoke(BEGINNING)

    async def play_async(self, program: Any) -> None:
        from langchain_team import BEGINNING

        await program.ainvoke(BEGINNING)

    @pytest.mark.usefixtures("recording")
    @pytest.mark.parametrize("mode", ["values", "updates", "messages", "debug", "events"])
    async def test_the_graphs_own_streams_are_the_same_episode(self, server: ScriptedModel, mode: str) -> None:
        from langchain_team import BEGINNING

        sink, program = ListSink(), self.build(TeamSetting(server.base_url))
        with attempt_scope(scope_for_test(sink)):
            if mode == "events":
                assert [event async for event in program.astream_events(BEGINNING, version="v2")]
            else:
                assert [part async for part in program.astream(BEGINNING, stream_mode=mode, subgraphs=True)]
        found = canonical(build_episode("task", "at-test", "ro-test", sink.spans, ()))
        assert found == expected_episode(exact=False, rewarded=False)


class TestLangGraph(LangGraphConformance):
    def build(self, setting: TeamSetting) -> Any:
        from langchain_team import team_of

        return team_of(setting)


class TestLangGraphByHand(LangGraphConformance):
    def build(self, setting: TeamSetting) -> Any:
        from langchain_team import team_by_hand

        return team_by_hand(setting)
