"""The described team in LangGraph, twice: agents by ``create_agent`` that hand over with a ``Command``, and graphs made
by hand, where control follows the edges.
"""

from __future__ import annotations

from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command

from coterie.testing.described_team import TASK, TeamSetting

BEGINNING = {"messages": [HumanMessage(TASK)]}


def team_of(setting: TeamSetting) -> Any:
    """Agents by ``create_agent``; the coder is a tool of the planner's."""
    model, run_tests = model_of(setting), tests_of(setting)
    coder = create_agent(model, [run_tests], system_prompt=setting.prompts["coder"], name="coder")

    @tool
    def transfer_to_reviewer(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[str]:
        """Hand over to the reviewer."""
        said = ToolMessage("The reviewer takes over.", tool_call_id=tool_call_id)
        return Command(goto="reviewer", graph=Command.PARENT, update={"messages": [said]})

    planner = create_agent(
        model, [asking(coder), transfer_to_reviewer], system_prompt=setting.prompts["planner"], name="planner"
    )
    reviewer = create_agent(model, [], system_prompt=setting.prompts["reviewer"], name="reviewer")
    graph = StateGraph(MessagesState)
    graph.add_node("planner", planner, destinations=("reviewer",))
    graph.add_node("reviewer", reviewer)
    graph.add_edge(START, "planner")
    return graph.compile(name="team")


def team_by_hand(setting: TeamSetting) -> Any:
    """Nodes that call the model themselves, tools in nodes of their own, and an edge from the planner to the reviewer."""
    model, run_tests = model_of(setting), tests_of(setting)

    def speaks(role: str, *tools: Any) -> Any:
        speaker = model.bind_tools(tools) if tools else model

        def act(state: MessagesState) -> MessagesState:
            return {"messages": [speaker.invoke([SystemMessage(setting.prompts[role]), *state["messages"]])]}

        return act

    coding = StateGraph(MessagesState)
    coding.add_node("coder", speaks("coder", run_tests))
    coding.add_node("tools", ToolNode([run_tests]))
    coding.add_edge(START, "coder")
    coding.add_conditional_edges("coder", tools_condition)
    coding.add_edge("tools", "coder")
    ask_coder = asking(coding.compile(name="coder"))

    graph = StateGraph(MessagesState)
    graph.add_node("planner", speaks("planner", ask_coder))
    graph.add_node("call_tools", ToolNode([ask_coder]))
    graph.add_node("reviewer", speaks("reviewer"))
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", tools_condition, {"tools": "call_tools", END: "reviewer"})
    graph.add_edge("call_tools", "planner")
    return graph.compile(name="team")


def model_of(setting: TeamSetting) -> ChatOpenAI:
    return ChatOpenAI(
        model=setting.model,
        base_url=setting.base_url,
        api_key=setting.api_key,
        max_retries=setting.max_retries,
        streaming=setting.streamed,
        timeout=30,
    )


def tests_of(setting: TeamSetting) -> Any:
    @tool
    def run_tests(path: str) -> str:
        """Run the tests of a file."""
        return setting.run_tests(path)

    return run_tests


def asking(coder: Any) -> Any:
    """The coder as a tool, for programs that run synchronously and for those that do not."""

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
    return ask_coder
