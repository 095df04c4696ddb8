"""Where control moves along a graph's edges: exact in parallel branches, joins, loops and pauses, or not recorded."""

from __future__ import annotations

import operator
import time
from collections import Counter
from typing import Annotated, Any, TypedDict

import pytest
from chat_models import chat_model
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, RetryPolicy, Send, interrupt
from reading_spans import edges, scope_of, system_text

from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test

pytestmark = pytest.mark.usefixtures("recording")


class Notes(TypedDict, total=False):
    """What was said so far."""

    said: Annotated[list[str], operator.add]


def says(name: str, seconds: float = 0.0) -> Any:
    def act(_: Notes) -> Notes:
        time.sleep(seconds)
        return {"said": [name]}

    return act


def graph_of(*nodes: str, seconds: dict[str, float] | None = None, **more: Any) -> StateGraph[Any]:
    """A graph whose nodes only say their names; ``more`` gives nodes of another kind."""
    graph: StateGraph[Any] = StateGraph(Notes)
    for name in nodes:
        graph.add_node(name, says(name, (seconds or {}).get(name, 0.0)))
    for name, act in more.items():
        graph.add_node(name, act)
    return graph


def run(graph: Any, *inputs: Any, **settings: Any) -> ListSink:
    """Run a graph once for each input, in one attempt."""
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        for one in inputs or ({"said": []},):
            graph.invoke(one, **settings)
    return sink


def moves(sink: ListSink) -> list[str]:
    assert all(kind == "handoff" for kind, _, _ in edges(sink.spans))
    return [f"{source}>{target}" for _, source, target in edges(sink.spans)]


def test_parallel_branches_and_their_join_are_exact():
    graph = graph_of("planner", "a", "b", "a2", "b2", "judge", seconds={"a": 0.05, "b2": 0.03})
    graph.add_edge(START, "planner")
    for edge in (("planner", "a"), ("planner", "b"), ("a", "a2"), ("b", "b2")):
        graph.add_edge(*edge)
    graph.add_edge(["a2", "b2"], "judge")
    sink = run(graph.compile())

    found = moves(sink)
    assert sorted(found[:2]) == ["planner>a", "planner>b"]
    assert sorted(found[2:4]) == ["a>a2", "b>b2"]
    assert sorted(found[4:]) == ["a2>judge", "b2>judge"]
    (written,) = {span.name for span in sink.spans if span.events}
    assert written == "invoke_workflow LangGraph"


def test_a_join_of_branches_of_different_length_happens_once_and_after_the_last():
    graph = graph_of("planner", "short", "long", "longer", "judge")
    graph.add_edge(START, "planner")
    for edge in (("planner", "short"), ("planner", "long"), ("long", "longer")):
        graph.add_edge(*edge)
    graph.add_edge(["short", "longer"], "judge")
    found = moves(run(graph.compile()))
    assert sorted(found[:2]) == ["planner>long", "planner>short"]
    assert found[2] == "long>longer"
    assert sorted(found[3:]) == ["longer>judge", "short>judge"]


def test_a_join_that_is_never_complete_moves_nothing():
    graph = graph_of("router", "a", "b", "judge")
    graph.add_edge(START, "router")
    graph.add_conditional_edges("router", lambda _: "a", ["a", "b"])
    graph.add_edge(["a", "b"], "judge")
    sink = run(graph.compile())
    assert moves(sink) == ["router>a"]
    assert {span.attributes[names.AGENT_NAME] for span in sink.of(names.INVOKE_AGENT)} == {"router", "a"}


def test_a_join_in_a_loop_counts_each_round():
    graph = graph_of("planner", "a", "b", "judge")
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "a")
    graph.add_edge("planner", "b")
    graph.add_edge(["a", "b"], "judge")
    graph.add_conditional_edges("judge", lambda state: "planner" if len(state["said"]) < 8 else END, ["planner", END])
    assert Counter(moves(run(graph.compile()))) == {
        "planner>a": 2,
        "planner>b": 2,
        "a>judge": 2,
        "b>judge": 2,
        "judge>planner": 1,
    }


def test_a_deferred_node_takes_over_from_all_that_lead_to_it():
    graph = graph_of("planner", "a", "b", "b2")
    graph.add_node("judge", says("judge"), defer=True)
    graph.add_edge(START, "planner")
    for edge in (("planner", "a"), ("planner", "b"), ("b", "b2"), ("a", "judge"), ("b2", "judge")):
        graph.add_edge(*edge)
    found = moves(run(graph.compile()))
    assert Counter(found) == dict.fromkeys(("planner>a", "planner>b", "b>b2", "a>judge", "b2>judge"), 1)
    assert sorted(found[-2:]) == ["a>judge", "b2>judge"]


def test_fan_out_by_send_is_one_edge_an_activation():
    graph = graph_of("planner", "worker", "judge")
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", lambda _: [Send("worker", {}) for _ in range(3)], ["worker"])
    graph.add_edge("worker", "judge")
    assert moves(run(graph.compile())) == ["planner>worker"] * 3 + ["worker>judge"] * 3


def test_conditions_with_names_of_their_own_and_with_several_targets():
    graph = graph_of("planner", "a", "b", "c")
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", lambda _: ["left", "right"], {"left": "a", "right": "b", "other": "c"})
    assert sorted(moves(run(graph.compile()))) == ["planner>a", "planner>b"]


def test_an_agent_that_goes_on_with_itself_hands_nothing_over():
    graph = graph_of("coder", "reviewer")
    graph.add_edge(START, "coder")
    graph.add_conditional_edges("coder", lambda state: "coder" if len(state["said"]) < 3 else "reviewer")
    assert moves(run(graph.compile())) == ["coder>reviewer"]


async def test_async_runs_and_streams_are_as_exact():
    graph = graph_of("planner", "a", "b", "judge")
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "a")
    graph.add_edge("planner", "b")
    graph.add_edge(["a", "b"], "judge")
    compiled, expected = graph.compile(), ["a>judge", "b>judge", "planner>a", "planner>b"]
    for mode in ("values", "updates", "debug"):
        sink = ListSink()
        with attempt_scope(scope_for_test(sink)):
            assert [chunk async for chunk in compiled.astream({"said": []}, stream_mode=mode)]
        assert sorted(moves(sink)) == expected
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        assert [event async for event in compiled.astream_events({"said": []}, version="v2")]
        await compiled.abatch([{"said": []}, {"said": []}])
    assert Counter(moves(sink)) == dict.fromkeys(expected, 3)


def test_a_command_and_an_edge_to_the_same_node_are_one_move():
    graph = graph_of("coder", "tester")
    graph.add_node("planner", lambda _: Command(goto="coder", update={"said": ["planner"]}))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    graph.add_edge("planner", "tester")
    sink = run(graph.compile())
    assert Counter(moves(sink)) == {"planner>coder": 1, "planner>tester": 1}
    assert len(sink.of(names.INVOKE_AGENT)) == 3


def test_a_command_to_the_graph_above_does_not_hide_the_nodes_own_edge():
    inner = StateGraph(Notes)
    inner.add_node("scout", lambda _: Command(goto="closer", graph=Command.PARENT, update={"said": ["found"]}))
    inner.add_edge(START, "scout")
    graph = graph_of("closer", "clerk", field=inner.compile())
    graph.add_edge(START, "field")
    graph.add_edge("field", "clerk")
    sink = run(graph.compile())
    assert Counter(moves(sink)) == {"scout>closer": 1, "field>clerk": 1}
    assert len(sink.of(names.INVOKE_AGENT)) == 4


def test_who_left_a_graph_above_is_not_taken_for_who_leaves_later():
    def twice(state: Notes) -> Any:
        goto = "clerk" if len(state["said"]) < 2 else "closer"
        return Command(goto=goto, graph=Command.PARENT, update={"said": ["found"]})

    inner = StateGraph(Notes)
    inner.add_node("scout", twice)
    inner.add_edge(START, "scout")
    graph = graph_of("closer", field=inner.compile())
    graph.add_node("clerk", lambda _: Command(goto="field", update={"said": ["again"]}))
    graph.add_edge(START, "field")
    assert moves(run(graph.compile())) == ["scout>clerk", "clerk>field", "scout>closer"]


def test_edges_inside_and_around_a_graph_in_a_node():
    inner = graph_of("scout", "digger")
    inner.add_edge(START, "scout")
    inner.add_edge("scout", "digger")
    graph = graph_of("planner", "closer", field=inner.compile())
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "field")
    graph.add_edge("field", "closer")
    sink = run(graph.compile())
    assert moves(sink) == ["planner>field", "scout>digger", "field>closer"]
    inner_edges = [event for span in sink.spans if span.name == "invoke_agent field" for event in span.events]
    assert [event.attributes[names.HANDOFF_SOURCE] for event in inner_edges] == ["scout"]


@pytest.mark.parametrize("pause", [{"interrupt_before": ["coder"]}, {"interrupt_after": ["planner"]}])
def test_a_pause_between_two_nodes_neither_loses_nor_doubles_the_move(pause):
    graph = graph_of("planner", "coder", "judge")
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    graph.add_edge("coder", "judge")
    compiled = graph.compile(checkpointer=InMemorySaver(), **pause)
    sink = run(compiled, {"said": []}, None, config={"configurable": {"thread_id": "1"}})
    assert moves(sink) == ["planner>coder", "coder>judge"]


def test_a_node_that_asks_the_user_moves_on_once():
    def ask(_: Notes) -> Notes:
        return {"said": [interrupt("may I?")]}

    graph = graph_of("planner", "a", "judge", asker=ask)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "a")
    graph.add_edge("planner", "asker")
    graph.add_edge(["a", "asker"], "judge")
    compiled = graph.compile(checkpointer=InMemorySaver())
    sink = run(compiled, {"said": []}, Command(resume="yes"), config={"configurable": {"thread_id": "1"}})
    assert Counter(moves(sink)) == dict.fromkeys(("planner>a", "planner>asker", "a>judge", "asker>judge"), 1)


def test_a_node_that_is_tried_again_moves_on_once():
    tries: list[int] = []

    def shaky(_: Notes) -> Notes:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("not yet")
        return {"said": ["done"]}

    graph = graph_of("planner", "judge")
    policy = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=OSError)
    graph.add_node("shaky", shaky, retry_policy=policy)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "shaky")
    graph.add_edge("shaky", "judge")
    assert moves(run(graph.compile())) == ["planner>shaky", "shaky>judge"]


def test_nothing_follows_a_superstep_that_fails():
    def fail(_: Notes) -> Notes:
        time.sleep(0.02)
        raise ValueError("no")

    graph = graph_of("planner", "a", "judge", broken=fail)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "a")
    graph.add_edge("planner", "broken")
    graph.add_edge("a", "judge")
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(ValueError, match="no"):
        graph.compile().invoke({"said": []})
    assert sorted(moves(sink)) == ["planner>a", "planner>broken"]


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def adder_script(body: dict[str, Any]) -> Any:
    if body["messages"][-1]["role"] == "tool":
        return "five"
    return {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]}


def run_tools_by_hand(state: MessagesState) -> Any:
    calls = state["messages"][-1].tool_calls
    return {"messages": [ToolMessage(add.invoke(call["args"]), tool_call_id=call["id"]) for call in calls]}


@pytest.mark.parametrize("tools", [ToolNode([add]), run_tools_by_hand], ids=["ToolNode", "by_hand"])
def test_nothing_is_handed_to_a_node_that_runs_tools(serve, tools):
    server, sink = serve(adder_script), ListSink()
    model = chat_model(server).bind_tools([add])
    graph = StateGraph(MessagesState)
    graph.add_node("clerk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("calls", tools)
    graph.add_node("archive", lambda state: {"messages": [AIMessage("kept")]})
    graph.add_edge(START, "clerk")
    graph.add_conditional_edges("clerk", tools_condition, {"tools": "calls", END: "archive"})
    graph.add_edge("calls", "clerk")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("2+3")]})
    assert moves(sink) == ["clerk>archive"]
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.AGENT_PATH] == "clerk"


def test_tools_that_the_user_allows_first_belong_to_who_asked(serve):
    server, sink = serve(adder_script), ListSink()
    model = chat_model(server).bind_tools([add])
    graph = StateGraph(MessagesState)
    graph.add_node("clerk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "clerk")
    graph.add_conditional_edges("clerk", tools_condition)
    graph.add_edge("tools", "clerk")
    compiled = graph.compile(checkpointer=InMemorySaver(), interrupt_before=["tools"])
    config = {"configurable": {"thread_id": "1"}}
    with attempt_scope(scope_of(server, sink)):
        compiled.invoke({"messages": [HumanMessage("2+3")]}, config)
        assert compiled.invoke(None, config)["messages"][-1].text == "five"
    assert moves(sink) == []
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.AGENT_PATH] == "clerk"


def test_a_tool_that_does_not_exist_is_no_hand_off(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "sorry"
        return {"tool_calls": [{"name": "subtract", "arguments": {}}]}

    server, sink = serve(script), ListSink()
    model = chat_model(server).bind_tools([add])
    graph = StateGraph(MessagesState)
    graph.add_node("clerk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "clerk")
    graph.add_conditional_edges("clerk", tools_condition)
    graph.add_edge("tools", "clerk")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("2-3")]})
    assert moves(sink) == []


@pytest.mark.parametrize("goes_by", ["edge", "command"])
def test_what_follows_the_tools_follows_who_asked_for_them(serve, goes_by):
    server, sink = serve(lambda body: {"tool_calls": [{"name": "file_it", "arguments": {}}]}), ListSink()

    @tool
    def file_it(tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """File it."""
        said = ToolMessage("filed", tool_call_id=tool_call_id)
        return Command(goto="archive", update={"messages": [said]}) if goes_by == "command" else said

    model = chat_model(server).bind_tools([file_it])
    graph = StateGraph(MessagesState)
    graph.add_node("clerk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([file_it]))
    graph.add_node("archive", lambda state: {"messages": [AIMessage("kept")]})
    graph.add_edge(START, "clerk")
    graph.add_edge("clerk", "tools")
    if goes_by == "edge":
        graph.add_edge("tools", "archive")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("go")]})
    assert moves(sink) == ["clerk>archive"]
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes.get(names.HANDOFF_TARGET) == ("archive" if goes_by == "command" else None)


def test_a_graph_that_is_one_agent_hands_over_from_its_parts():
    graph = graph_of("agent", "reviewer")
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "reviewer")
    graph.add_conditional_edges("reviewer", lambda state: "agent" if len(state["said"]) < 3 else END)
    assert moves(run(graph.compile(name="writer"))) == ["writer>reviewer", "reviewer>writer", "writer>reviewer"]


def test_parts_of_an_agent_hand_nothing_over(serve):
    server, sink = serve(adder_script), ListSink()
    agent = create_agent(chat_model(server), [add], name="adder", system_prompt="adder")
    with attempt_scope(scope_of(server, sink)):
        agent.invoke({"messages": [HumanMessage("2+3")]})
    assert moves(sink) == []


def test_tasks_of_the_functional_api_hand_nothing_over():
    @task
    def analyse(text: str) -> str:
        return text.upper()

    @entrypoint()
    def pipeline(text: str) -> str:
        return analyse(analyse(text).result()).result()

    assert moves(run(pipeline, "hello")) == []


def test_a_hand_off_that_langgraph_does_not_follow_is_no_move(serve):
    def script(body: dict[str, Any]) -> Any:
        return {"tool_calls": [{"name": "leave", "arguments": {}}]} if system_text(body) == "alice" else "ok"

    server, sink = serve(script), ListSink()

    @tool
    def leave(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[str]:
        """Hand over to nobody."""
        said = ToolMessage("bye", tool_call_id=tool_call_id)
        return Command(goto=END, graph=Command.PARENT, update={"messages": [said]})

    graph = StateGraph(MessagesState)
    graph.add_node("alice", create_agent(chat_model(server), [leave], name="alice", system_prompt="alice"))
    graph.add_edge(START, "alice")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("hello")]})
    assert moves(sink) == []
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert names.HANDOFF_KIND not in call.attributes


def test_a_langgraph_whose_supersteps_cannot_be_followed_still_runs(monkeypatch, caplog):
    from coterie.capture import faults
    from coterie_langchain import supersteps

    monkeypatch.setattr(faults, "_noted", set())
    monkeypatch.setattr(supersteps, "_METHOD", "no_such_method")
    supersteps.unwatch_supersteps()
    graph = graph_of("planner", "coder")
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    for _ in range(2):
        sink = run(graph.compile())
        assert len(sink.of(names.INVOKE_AGENT)) == 2
        assert moves(sink) == []
    assert [record.levelname for record in caplog.records if "superstep" in record.getMessage()] == ["WARNING"]


def test_edges_of_models_that_capture_cannot_see():
    model = FakeListChatModel(responses=["one", "two"])
    graph = graph_of(
        planner=lambda _: {"said": [model.invoke("plan").text]}, coder=lambda _: {"said": [model.invoke("code").text]}
    )
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    sink = run(graph.compile())
    assert moves(sink) == ["planner>coder"]
    assert len(sink.of(names.CHAT)) == 2
