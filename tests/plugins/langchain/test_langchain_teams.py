"""Teams of the usual shapes, run for real: who acted, who called whom, and what the spans say about it."""

from __future__ import annotations

import json
import operator
import uuid
from typing import Annotated, Any, TypedDict

import openai
import pytest
from chat_models import chat_model
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph.types import Command, Send
from reading_spans import edges, last_text, outline, scope_of, system_text

import coterie
from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test
from coterie_langchain import identity
from coterie_langchain.runs import Run, RunKind

pytestmark = pytest.mark.usefixtures("recording")


class Notes(TypedDict):
    """A team's state: what was said so far."""

    said: Annotated[list[str], operator.add]


def node_of(model: Any, name: str) -> Any:
    def act(state: Notes) -> Notes:
        answer = model.invoke([SystemMessage(name), HumanMessage(" / ".join(state["said"]) or "begin")])
        return {"said": [answer.text]}

    return act


def three_roles(model: Any) -> Any:
    """The demo's team: the reviewer sends back once."""
    graph = StateGraph(Notes)
    for name in ("analyst", "coder", "reviewer"):
        graph.add_node(name, node_of(model, name))
    graph.add_edge(START, "analyst")
    graph.add_edge("analyst", "coder")
    graph.add_edge("coder", "reviewer")
    graph.add_conditional_edges("reviewer", lambda state: "coder" if len(state["said"]) < 4 else END, ["coder", END])
    return graph.compile()


THREE_ROLES = [
    "invoke_workflow LangGraph",
    "> invoke_agent analyst",
    "> > chat analyst",
    "> invoke_agent coder",
    "> > chat coder",
    "> invoke_agent reviewer",
    "> > chat reviewer",
    "> invoke_agent coder",
    "> > chat coder",
    "> invoke_agent reviewer",
    "> > chat reviewer",
]


def test_state_graph_with_send_back(serve):
    server, sink = serve(lambda body: f"{system_text(body)} speaks"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        three_roles(chat_model(server)).invoke({"said": []})

    assert outline(sink.spans) == THREE_ROLES
    assert edges(sink.spans) == [
        ("handoff", "analyst", "coder"),
        ("handoff", "coder", "reviewer"),
        ("handoff", "reviewer", "coder"),
        ("handoff", "coder", "reviewer"),
    ]
    chats = sink.of(names.CHAT)
    assert [(chat.attributes[names.ROLE], chat.attributes[names.TURN]) for chat in chats] == [
        ("analyst", 0),
        ("coder", 0),
        ("reviewer", 0),
        ("coder", 1),
        ("reviewer", 1),
    ]
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in chats)
    assert [request.headers["x-coterie-role"] for request in server.requests] == [
        chat.attributes[names.ROLE] for chat in chats
    ]


async def test_state_graph_async(serve):
    server, sink = serve(lambda body: f"{system_text(body)} speaks"), ListSink()
    model = chat_model(server)

    def node_async(name: str) -> Any:
        async def act(state: Notes) -> Notes:
            answer = await model.ainvoke([SystemMessage(name), HumanMessage("go")])
            return {"said": [answer.text]}

        return act

    graph = StateGraph(Notes)
    graph.add_node("analyst", node_async("analyst"))
    graph.add_node("coder", node_async("coder"))
    graph.add_edge(START, "analyst")
    graph.add_edge("analyst", "coder")
    with attempt_scope(scope_of(server, sink)):
        await graph.compile(name="pair").ainvoke({"said": []})

    assert outline(sink.spans) == [
        "invoke_workflow pair",
        "> invoke_agent analyst",
        "> > chat analyst",
        "> invoke_agent coder",
        "> > chat coder",
    ]
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def test_created_agent_with_tools(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return f"it is {last_text(body)}"
        return {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]}

    server, sink = serve(script), ListSink()
    agent = create_agent(chat_model(server), [add], name="Senior Adder", system_prompt="you add")
    with attempt_scope(scope_of(server, sink)):
        result = agent.invoke({"messages": [HumanMessage("2+3?")]})

    assert result["messages"][-1].text == "it is 5"
    assert outline(sink.spans) == [
        "invoke_agent Senior Adder",
        "> chat Senior Adder",
        "> execute_tool add Senior Adder",
        "> chat Senior Adder",
    ]
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert json.loads(call.attributes[names.TOOL_ARGUMENTS]) == {"a": 2, "b": 3}
    assert call.attributes[names.TOOL_RESULT] == "5"
    assert call.attributes[names.ROLE] == "senior_adder"
    assert call.attributes[names.TOOL_CALL_ID]


@pytest.mark.parametrize(("release", "kind"), [("1.2.10", RunKind.AGENT_BY_NODES), ("1.2.13", RunKind.GRAPH)])
def test_a_first_node_called_model_is_an_agents_where_create_agent_leaves_no_mark(monkeypatch, release, kind):
    monkeypatch.setattr(identity, "version", lambda _: release)
    identity._create_agent_leaves_a_mark.cache_clear()
    graph = Run(uuid.uuid4(), RunKind.CHAIN, "LangGraph", None, 0, None, None, integration="langgraph")
    try:
        assert identity.kind_of_graph(graph, "model") is kind
        assert identity.kind_of_graph(graph, "coder") is RunKind.GRAPH
    finally:
        identity._create_agent_leaves_a_mark.cache_clear()


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
def test_react_agent_of_langgraph_is_one_agent(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "five"
        return {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]}

    server, sink = serve(script), ListSink()
    agent = create_react_agent(chat_model(server), [add], name="adder")
    with attempt_scope(scope_of(server, sink)):
        agent.invoke({"messages": [HumanMessage("2+3?")]})

    assert outline(sink.spans) == [
        "invoke_agent adder",
        "> chat adder",
        "> execute_tool add adder",
        "> chat adder",
    ]


def test_agents_in_nodes_of_another_name_or_without_a_name(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    model = chat_model(server)
    graph = StateGraph(MessagesState)
    graph.add_node("drafts", create_agent(model, []))
    graph.add_node("checks", create_agent(model, [], name="critic"))
    graph.add_edge(START, "drafts")
    graph.add_edge("drafts", "checks")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("go")]})

    assert [chat.attributes[names.AGENT_PATH] for chat in sink.of(names.CHAT)] == ["drafts", "checks/critic"]


def sub_agent_as_tool(server: Any, **settings: Any) -> Any:
    coder = create_agent(chat_model(server), [], system_prompt="coder", **settings)

    @tool
    def ask_coder(question: str) -> str:
        """Ask the coder."""
        return coder.invoke({"messages": [HumanMessage(question)]})["messages"][-1].text

    return create_agent(chat_model(server), [ask_coder], name="supervisor", system_prompt="supervisor")


def supervisor_script(body: dict[str, Any]) -> Any:
    if system_text(body) == "coder":
        return "select 1"
    if body["messages"][-1]["role"] == "tool":
        return "done"
    return {"tool_calls": [{"name": "ask_coder", "arguments": {"question": "code it"}}]}


@pytest.mark.parametrize(("settings", "name"), [({"name": "coder"}, "coder"), ({}, "ask_coder")])
def test_sub_agent_as_tool_is_a_delegation(serve, settings, name):
    server, sink = serve(supervisor_script), ListSink()
    with attempt_scope(scope_of(server, sink)):
        sub_agent_as_tool(server, **settings).invoke({"messages": [HumanMessage("please")]})

    assert outline(sink.spans) == [
        "invoke_agent supervisor",
        "> chat supervisor",
        "> execute_tool ask_coder supervisor",
        f"> > invoke_agent supervisor/{name}",
        f"> > > chat supervisor/{name}",
        "> chat supervisor",
    ]
    assert edges(sink.spans) == [("delegation", "supervisor", name)]
    (delegating,) = [span for span in sink.spans if span.events]
    assert delegating.attributes[names.AGENT_NAME] == "supervisor"


def test_graph_as_tool_is_a_delegation(serve):
    server, sink = serve(supervisor_script), ListSink()
    graph = StateGraph(Notes)
    graph.add_node("coder", node_of(chat_model(server), "coder"))
    graph.add_edge(START, "coder")
    team = graph.compile()

    @tool
    def ask_coder(question: str) -> str:
        """Ask the coders."""
        return team.invoke({"said": [question]})["said"][-1]

    supervisor = create_agent(chat_model(server), [ask_coder], name="supervisor", system_prompt="supervisor")
    with attempt_scope(scope_of(server, sink)):
        supervisor.invoke({"messages": [HumanMessage("please")]})

    assert outline(sink.spans)[2:6] == [
        "> execute_tool ask_coder supervisor",
        "> > invoke_agent supervisor/ask_coder",
        "> > > invoke_agent supervisor/ask_coder/coder",
        "> > > > chat supervisor/ask_coder/coder",
    ]
    assert edges(sink.spans) == [("delegation", "supervisor", "ask_coder")]


@pytest.mark.parametrize("returns_from", ["agent", "node"])
def test_swarm_hand_off_is_no_error(serve, returns_from):
    def script(body: dict[str, Any]) -> Any:
        return {"tool_calls": [{"name": "to_bob", "arguments": {}}]} if system_text(body) == "alice" else "bye"

    server, sink = serve(script), ListSink()

    @tool
    def to_bob(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[str]:
        """Hand over to Bob."""
        said = ToolMessage("over to Bob", tool_call_id=tool_call_id)
        return Command(goto="bob", graph=Command.PARENT, update={"messages": [said]})

    alice = create_agent(chat_model(server), [to_bob], name="alice", system_prompt="alice")
    bob = create_agent(chat_model(server), [], name="bob", system_prompt="bob")
    graph = StateGraph(MessagesState)
    if returns_from == "agent":
        graph.add_node("alice", alice, destinations=("bob",))
    else:
        graph.add_node("alice", lambda state: alice.invoke(state), destinations=("bob",))
    graph.add_node("bob", bob)
    graph.add_edge(START, "alice")
    with attempt_scope(scope_of(server, sink)):
        graph.compile(name="swarm").invoke({"messages": [HumanMessage("hello")]})

    assert outline(sink.spans) == [
        "invoke_workflow swarm",
        "> invoke_agent alice",
        "> > chat alice",
        "> > execute_tool to_bob alice",
        "> invoke_agent bob",
        "> > chat bob",
    ]
    assert edges(sink.spans) == [("handoff", "alice", "bob")]
    assert {span.status.value for span in sink.spans} == {"unset"}
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.TOOL_RESULT] == "over to Bob"


def test_node_that_returns_a_command_hands_over(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    speak = node_of(chat_model(server), "planner")
    graph = StateGraph(Notes)
    graph.add_node("planner", lambda state: Command(goto=["coder", "tester"], update=speak(state)))
    graph.add_node("coder", lambda state: Command(goto=END, update={"said": ["c"]}))
    graph.add_node("tester", lambda state: {"said": ["t"]})
    graph.add_edge(START, "planner")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"said": []})

    assert edges(sink.spans) == [("handoff", "planner", "coder"), ("handoff", "planner", "tester")]


def test_command_to_the_parent_from_a_sub_graphs_node(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    inner = StateGraph(Notes)
    inner.add_node("scout", lambda state: Command(goto="closer", graph=Command.PARENT, update={"said": ["found"]}))
    inner.add_edge(START, "scout")
    outer = StateGraph(Notes)
    outer.add_node("field", inner.compile(), destinations=("closer",))
    outer.add_node("closer", node_of(chat_model(server), "closer"))
    outer.add_edge(START, "field")
    with attempt_scope(scope_of(server, sink)):
        outer.compile().invoke({"said": []})

    assert outline(sink.spans) == [
        "invoke_workflow LangGraph",
        "> invoke_agent field",
        "> > invoke_agent field/scout",
        "> invoke_agent closer",
        "> > chat closer",
    ]
    assert edges(sink.spans) == [("handoff", "scout", "closer")]
    assert {span.status.value for span in sink.spans} == {"unset"}


def test_tools_in_a_node_of_their_own_belong_to_who_asked(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "five"
        return {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]}

    server, sink = serve(script), ListSink()
    model = chat_model(server).bind_tools([add])
    graph = StateGraph(MessagesState)
    graph.add_node("clerk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "clerk")
    graph.add_conditional_edges("clerk", tools_condition)
    graph.add_edge("tools", "clerk")
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke({"messages": [HumanMessage("2+3")]})

    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.AGENT_PATH] == "clerk"


def test_tool_that_raises_is_an_error_of_tool_and_agent(serve):
    server, sink = serve(lambda body: {"tool_calls": [{"name": "fail", "arguments": {}}]}), ListSink()
    fault = ValueError("no such table")

    @tool
    def fail() -> str:
        """Always fails."""
        raise fault

    agent = create_agent(chat_model(server), [fail], name="coder")
    with attempt_scope(scope_of(server, sink)), pytest.raises(ValueError, match="no such table") as caught:
        agent.invoke({"messages": [HumanMessage("go")]})

    assert caught.value is fault
    broken = {span.name for span in sink.spans if span.status.value == "error"}
    assert broken == {"execute_tool fail", "invoke_agent coder"}
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.ERROR_TYPE] == "ValueError"
    assert call.status_message == "ValueError: no such table"


def test_bare_sdk_in_a_node_has_the_nodes_identity(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)

    def coder(state: Notes) -> Notes:
        answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "go"}])
        with coterie.agent("critic"):
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "check"}])
        return {"said": [answer.choices[0].message.content or ""]}

    graph = StateGraph(Notes)
    graph.add_node("coder", coder)
    graph.add_edge(START, "coder")
    with attempt_scope(scope_of(server, sink)), coterie.agent("manager"):
        graph.compile().invoke({"said": []})
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "sum up"}])

    paths = [chat.attributes[names.AGENT_PATH] for chat in sink.of(names.CHAT)]
    assert paths == ["manager/coder", "manager/coder/critic", "manager"]


def test_plain_chain_and_model_alone(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    chain = prompt | chat_model(server) | RunnableLambda(lambda answer: answer.text)
    with attempt_scope(scope_of(server, sink)):
        assert chain.invoke({"question": "why"}) == "ok"
        chain.with_config(run_name="Oracle").invoke({"question": "why"})
        chat_model(server).invoke("alone")

    assert outline(sink.spans) == [
        "invoke_workflow RunnableSequence",
        "> chat agent",
        "invoke_workflow Oracle",
        "> chat Oracle",
        "chat agent",
    ]


def test_functional_api(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    model = chat_model(server)

    @task
    def analyse(text: str) -> str:
        return model.invoke(text).text

    @entrypoint()
    def pipeline(text: str) -> str:
        return analyse(text).result()

    with attempt_scope(scope_of(server, sink)):
        pipeline.invoke("hello")

    assert outline(sink.spans) == [
        "invoke_workflow LangGraph",
        "> invoke_agent pipeline",
        "> > invoke_agent pipeline/analyse",
        "> > > chat pipeline/analyse",
    ]


def test_model_that_capture_cannot_see_is_recorded_from_the_callback():
    sink = ListSink()
    scope = scope_for_test(sink)
    with attempt_scope(scope):
        three_roles(FakeListChatModel(responses=["one", "two", "three"])).invoke({"said": []})

    assert outline(sink.spans) == THREE_ROLES
    coders = [chat for chat in sink.of(names.CHAT) if chat.attributes[names.ROLE] == "coder"]
    assert [chat.attributes[names.TURN] for chat in coders] == [0, 1]
    assert json.loads(coders[0].attributes[names.INPUT_MESSAGES]) == [
        {"role": "system", "content": "coder"},
        {"role": "user", "content": "one"},
    ]
    assert json.loads(coders[0].attributes[names.OUTPUT_MESSAGES]) == [{"role": "assistant", "content": "two"}]
    assert [call.text for call in scope.calls] == ["one", "two", "three", "one", "two"]
    assert [call.call_id for call in scope.calls] == [chat.attributes[names.CALL_ID] for chat in sink.of(names.CHAT)]


def test_batch_of_prompts_is_recorded_once_each(serve):
    server, sink = serve(lambda body: last_text(body)), ListSink()
    model = chat_model(server)
    with attempt_scope(scope_of(server, sink)):
        model.generate([[HumanMessage("a")], [HumanMessage("b")], [HumanMessage("c")]])
        model.batch(["d", "e"])

    assert len(server.requests) == 5
    assert len(sink.of(names.CHAT)) == 5


def test_fan_out_by_send(serve):
    server, sink = serve(lambda body: last_text(body)), ListSink()
    model = chat_model(server)
    graph = StateGraph(Notes)
    graph.add_node("worker", lambda state: {"said": [model.invoke(f"part {state['part']}").text]})
    graph.add_conditional_edges(START, lambda _: [Send("worker", {"part": n}) for n in range(3)], ["worker"])
    with attempt_scope(scope_of(server, sink)):
        result = graph.compile().invoke({"said": []})

    assert sorted(result["said"]) == ["part 0", "part 1", "part 2"]
    assert outline(sink.spans) == ["invoke_workflow LangGraph", *["> invoke_agent worker", "> > chat worker"] * 3]
    assert sorted(chat.attributes[names.TURN] for chat in sink.of(names.CHAT)) == [0, 1, 2]


def test_sub_agents_side_by_side(serve):
    def script(body: dict[str, Any]) -> Any:
        if system_text(body) != "supervisor":
            return system_text(body)
        if body["messages"][-1]["role"] == "tool":
            return "done"
        return {"tool_calls": [{"name": f"ask_{name}", "arguments": {}} for name in "abcd"]}

    server, sink = serve(script), ListSink()
    model = chat_model(server)

    def ask(name: str) -> Any:
        # Two first nodes start at once, each in its thread: the graph must still be found out once.
        graph = StateGraph(Notes)
        for part in (f"{name}1", f"{name}2"):
            graph.add_node(part, node_of(model, part))
            graph.add_edge(START, part)
        team = graph.compile(name=f"team_{name}")

        def call() -> str:
            """Ask a team."""
            return " ".join(team.invoke({"said": []})["said"])

        call.__name__ = f"ask_{name}"
        return tool(call)

    supervisor = create_agent(model, [ask(name) for name in "abcd"], name="supervisor", system_prompt="supervisor")
    with attempt_scope(scope_of(server, sink)):
        supervisor.invoke({"messages": [HumanMessage("go")]})

    paths = sorted(chat.attributes[names.AGENT_PATH] for chat in sink.of(names.CHAT))
    below = [f"supervisor/team_{name}/{name}{part}" for name in "abcd" for part in (1, 2)]
    assert paths == ["supervisor", "supervisor", *below]
    for chat in sink.of(names.CHAT):
        said = json.loads(chat.attributes[names.INPUT_MESSAGES])[0]["content"]
        assert said == chat.attributes[names.AGENT_NAME]
    assert sorted(edges(sink.spans)) == [("delegation", "supervisor", f"team_{name}") for name in "abcd"]
    assert len(sink.of(names.INVOKE_AGENT)) == 1 + 4 + 8
