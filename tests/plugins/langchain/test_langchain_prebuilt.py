"""Teams of the packages langgraph-supervisor and langgraph-swarm."""

from __future__ import annotations

from typing import Any

import pytest
from chat_models import chat_model
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from reading_spans import edges, outline, scope_of, system_text

from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink

pytestmark = pytest.mark.usefixtures("recording")

QUESTION = {"messages": [HumanMessage("go")]}


def agent(model: Any, name: str, *tools: Any) -> Any:
    return create_agent(model, list(tools), name=name, system_prompt=name)


def played(serve: Any, script: Any, build: Any) -> ListSink:
    server, sink = serve(script), ListSink()
    with attempt_scope(scope_of(server, sink)):
        build(chat_model(server)).invoke(QUESTION)
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))
    return sink


def test_supervisor(serve):
    supervisors = pytest.importorskip("langgraph_supervisor")

    def script(body: dict[str, Any]) -> Any:
        if system_text(body) != "supervisor":
            return f"{system_text(body)} is ready"
        # The way there and the way back each leave the result of a tool call.
        after = {0: "transfer_to_coder", 2: "transfer_to_reviewer"}
        called = after.get(sum(message["role"] == "tool" for message in body["messages"]))
        return {"tool_calls": [{"name": called, "arguments": {}}]} if called else "done"

    def build(model: Any) -> Any:
        members = [agent(model, "coder"), agent(model, "reviewer")]
        return supervisors.create_supervisor(members, model=model, prompt="supervisor").compile(name="team")

    sink = played(serve, script, build)
    assert outline(sink.spans) == [
        "invoke_workflow team",
        "> invoke_agent supervisor",
        "> > chat supervisor",
        "> > execute_tool transfer_to_coder supervisor",
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent supervisor",
        "> > chat supervisor",
        "> > execute_tool transfer_to_reviewer supervisor",
        "> invoke_agent reviewer",
        "> > chat reviewer",
        "> invoke_agent supervisor",
        "> > chat supervisor",
    ]
    assert edges(sink.spans) == [
        ("handoff", "supervisor", "coder"),
        ("handoff", "coder", "supervisor"),
        ("handoff", "supervisor", "reviewer"),
        ("handoff", "reviewer", "supervisor"),
    ]
    marked = [(call.attributes[names.HANDOFF_KIND], call.attributes[names.HANDOFF_TARGET]) for call in tools_of(sink)]
    assert marked == [("handoff", "coder"), ("handoff", "reviewer")]
    assert all(len(call.attributes.get(names.TOOL_RESULT, "")) < 200 for call in tools_of(sink))


def test_supervisor_that_hands_over_to_two_at_once_has_the_edges_that_langgraph_followed(serve):
    supervisors = pytest.importorskip("langgraph_supervisor")

    def script(body: dict[str, Any]) -> Any:
        if system_text(body) != "supervisor":
            return f"{system_text(body)} is ready"
        if any(message["role"] == "tool" for message in body["messages"]):
            return "done"
        return {"tool_calls": [{"name": f"transfer_to_{name}", "arguments": {}} for name in ("coder", "reviewer")]}

    def build(model: Any) -> Any:
        members = [agent(model, "coder"), agent(model, "reviewer")]
        return supervisors.create_supervisor(
            members, model=model, prompt="supervisor", parallel_tool_calls=True
        ).compile()

    sink = played(serve, script, build)
    ran = {span.attributes[names.AGENT_NAME] for span in sink.of(names.INVOKE_AGENT)} - {"supervisor"}
    assert {target for _, source, target in edges(sink.spans) if source == "supervisor"} == ran
    assert {source for _, source, target in edges(sink.spans) if target == "supervisor"} == ran
    assert all(len(call.attributes.get(names.TOOL_RESULT, "")) < 200 for call in tools_of(sink))


def test_swarm(serve):
    swarms = pytest.importorskip("langgraph_swarm")

    def script(body: dict[str, Any]) -> Any:
        called = {"alice": "transfer_to_bob", "bob": "transfer_to_carol"}.get(system_text(body))
        return {"tool_calls": [{"name": called, "arguments": {}}]} if called else "done"

    def build(model: Any) -> Any:
        def hand_off(name: str) -> Any:
            return swarms.create_handoff_tool(agent_name=name)

        members = [
            agent(model, "alice", hand_off("bob")),
            agent(model, "bob", hand_off("carol")),
            agent(model, "carol", hand_off("alice")),
        ]
        return swarms.create_swarm(members, default_active_agent="alice").compile(name="swarm")

    sink = played(serve, script, build)
    assert [line for line in outline(sink.spans) if "invoke" in line] == [
        "invoke_workflow swarm",
        "> invoke_agent alice",
        "> invoke_agent bob",
        "> invoke_agent carol",
    ]
    assert edges(sink.spans) == [("handoff", "alice", "bob"), ("handoff", "bob", "carol")]
    assert [call.attributes[names.HANDOFF_TARGET] for call in tools_of(sink)] == ["bob", "carol"]


def tools_of(sink: ListSink) -> list[Any]:
    return sorted(sink.of(names.EXECUTE_TOOL), key=lambda span: span.start_ns)
