"""The described team in LangGraph: agents by ``create_agent``, the coder as a tool, a hand-off by ``Command``."""

from __future__ import annotations

from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from coterie.testing.described_team import TASK, TeamSetting


def team_of(setting: TeamSetting) -> Any:
    model = ChatOpenAI(
        model=setting.model,
        base_url=setting.base_url,
        api_key=setting.api_key,
        max_retries=setting.max_retries,
        streaming=setting.streamed,
        timeout=30,
    )

    @tool
    def run_tests(path: str) -> str:
        """Run the tests of a file."""
        return setting.run_tests(path)

    coder = create_agent(model, [run_tests], system_prompt=setting.prompts["coder"], name="coder")

    @tool
    async def ask_coder_async(task: str) -> str:
        """Ask the coder for a function."""
        state = await coder.ainvoke({"messages": [HumanMessage(task)]})
        return state["messages"][-1].text

    @tool
    def ask_coder(task: str) -> str:
        """Ask the coder for a function."""
        return coder.invoke({"messages": [HumanMessage(task)]})["messages"][-1].text

    ask_coder.coroutine = ask_coder_async.coroutine

    @tool
    def transfer_to_reviewer(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[str]:
        """Hand over to the reviewer."""
        said = ToolMessage("The reviewer takes over.", tool_call_id=tool_call_id)
        return Command(goto="reviewer", graph=Command.PARENT, update={"messages": [said]})

    planner = create_agent(
        model, [ask_coder, transfer_to_reviewer], system_prompt=setting.prompts["planner"], name="planner"
    )
    reviewer = create_agent(model, [], system_prompt=setting.prompts["reviewer"], name="reviewer")
    graph = StateGraph(MessagesState)
    graph.add_node("planner", planner, destinations=("reviewer",))
    graph.add_node("reviewer", reviewer)
    graph.add_edge(START, "planner")
    return graph.compile(name="team")


BEGINNING = {"messages": [HumanMessage(TASK)]}
