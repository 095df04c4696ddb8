"""Crews, flows and agents of the usual shapes, run for real: who acted, who called whom, and what the spans say."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import openai
import pytest
from crewai import Agent, Flow, Process
from crewai.flow.flow import listen, start
from crewai.tools import tool
from crews import agent_of, crew_of, model_at, said_by, task_of, tool_results
from pydantic import BaseModel
from reading_spans import edges, outline, scope_of

import coterie
from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, Reply, ScriptedModel

pytestmark = pytest.mark.usefixtures("recording")

TWO_AGENTS = [
    "invoke_workflow team",
    "> invoke_agent Alpha",
    "> > chat Alpha",
    "> invoke_agent Beta",
    "> > chat Beta",
]
ALPHA_TO_BETA = [("handoff", "Alpha", "Beta")]


def two_agents(server: ScriptedModel, *, model: Any = None, **settings: Any) -> Any:
    llm = model or model_at(server)
    return crew_of(task_of(agent_of(llm, "Alpha")), task_of(agent_of(llm, "Beta")), **settings)


def played(server: ScriptedModel, run: Any) -> ListSink:
    sink = ListSink()
    with attempt_scope(scope_of(server, sink)):
        run()
    return sink


def roles_on_the_wire(server: ScriptedModel) -> list[str]:
    return [request.headers["x-coterie-role"] for request in server.requests]


@pytest.mark.parametrize("way", ["kickoff", "kickoff_async", "akickoff"])
def test_sequential_crew(serve, way):
    server = serve(lambda body: f"{said_by(body)} speaks")

    def run() -> None:
        result = getattr(two_agents(server), way)()
        assert (asyncio.run(result) if asyncio.iscoroutine(result) else result).raw == "Beta speaks"

    sink = played(server, run)
    assert outline(sink.spans) == TWO_AGENTS
    assert edges(sink.spans) == ALPHA_TO_BETA
    assert roles_on_the_wire(server) == ["alpha", "beta"]
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))
    assert {span.status.value for span in sink.spans} == {"unset"}


@pytest.mark.parametrize("way", ["kickoff_for_each", "kickoff_for_each_async", "akickoff_for_each"])
def test_a_crew_for_each_input_is_a_run_each(serve, way):
    server = serve(lambda body: "x")

    def run() -> None:
        result = getattr(two_agents(server), way)([{"n": "1"}, {"n": "2"}])
        assert len(asyncio.run(result) if asyncio.iscoroutine(result) else result) == 2

    sink = played(server, run)
    assert outline(sink.spans) == TWO_AGENTS * 2
    assert edges(sink.spans) == ALPHA_TO_BETA * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_streaming_crew_and_streaming_model(serve, asynchronous):
    server = serve(lambda body: "some words in a stream")

    async def consume() -> None:
        streaming = await two_agents(server, stream=True).akickoff()
        assert [chunk async for chunk in streaming]

    def run() -> None:
        if asynchronous:
            asyncio.run(consume())
        else:
            assert list(two_agents(server, stream=True).kickoff())

    sink = played(server, run)
    assert outline(sink.spans) == TWO_AGENTS
    assert all(chat.attributes[names.REQUEST_STREAM] for chat in sink.of(names.CHAT))
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))


def delegation(tool_name: str, argument: str) -> Any:
    def script(body: dict[str, Any]) -> Any:
        if said_by(body) == "Coder":
            return "it is coded"
        if tool_results(body):
            return "it is done"
        return {"tool_calls": [{"name": tool_name, "arguments": {argument: "t", "context": "c", "coworker": "coder "}}]}

    return script


@pytest.mark.parametrize(
    ("tool_name", "argument"), [("delegate_work_to_coworker", "task"), ("ask_question_to_coworker", "question")]
)
@pytest.mark.parametrize("way", ["kickoff", "akickoff"])
def test_a_coworker_acts_under_the_tool_call_that_asks_it(serve, tool_name, argument, way):
    server = serve(delegation(tool_name, argument))
    model = model_at(server)
    planner, coder = agent_of(model, "Planner", allow_delegation=True), agent_of(model, "Coder")

    def run() -> None:
        result = getattr(crew_of(task_of(planner), agents=[planner, coder]), way)()
        assert (asyncio.run(result) if asyncio.iscoroutine(result) else result).raw == "it is done"

    sink = played(server, run)
    assert outline(sink.spans) == [
        "invoke_workflow team",
        "> invoke_agent Planner",
        "> > chat Planner",
        f"> > execute_tool {tool_name} Planner",
        "> > > invoke_agent Planner/Coder",
        "> > > > chat Planner/Coder",
        "> > chat Planner",
    ]
    assert roles_on_the_wire(server) == ["planner", "coder", "planner"]
    episode = build_episode("t", "at-test", "ro-test", sink.spans, [])
    assert [(edge.kind, edge.source, edge.target) for edge in episode.edges] == [("delegation", "Planner", "Coder")]
    (call,) = episode.tool_calls
    assert (call.carries, call.result) == ("delegation", "it is coded")


def test_hierarchical_crew_with_a_manager_of_its_own_making(serve):
    server = serve(delegation("delegate_work_to_coworker", "task"))
    model = model_at(server)
    crew = crew_of(task_of(None), agents=[agent_of(model, "Coder")], process=Process.hierarchical, manager_llm=model)
    sink = played(server, crew.kickoff)

    one_task = [
        "> invoke_agent Crew Manager",
        "> > chat Crew Manager",
        "> > execute_tool delegate_work_to_coworker Crew Manager",
        "> > > invoke_agent Crew Manager/Coder",
        "> > > > chat Crew Manager/Coder",
        "> > chat Crew Manager",
    ]
    assert outline(sink.spans) == ["invoke_workflow team", *one_task]
    assert edges(sink.spans) == []


@pytest.mark.parametrize("way", ["kickoff", "akickoff"])
def test_tasks_side_by_side(serve, way):
    server = serve(lambda body: "x")
    model = model_at(server)
    first, left, right, last = (agent_of(model, role) for role in ("First", "Left", "Right", "Last"))
    crew = crew_of(
        task_of(first), task_of(left, async_execution=True), task_of(right, async_execution=True), task_of(last)
    )

    def run() -> None:
        result = getattr(crew, way)()
        if asyncio.iscoroutine(result):
            asyncio.run(result)

    sink = played(server, run)
    assert sorted(outline(sink.spans)[1:]) == sorted(
        line for role in ("First", "Left", "Right", "Last") for line in (f"> invoke_agent {role}", f"> > chat {role}")
    )
    assert sorted(edges(sink.spans)) == [
        ("handoff", "First", "Left"),
        ("handoff", "First", "Right"),
        ("handoff", "Left", "Last"),
        ("handoff", "Right", "Last"),
    ]


def test_an_agent_that_goes_on_hands_nothing_over(serve):
    server = serve(lambda body: "x")
    solo = agent_of(model_at(server), "Solo")
    sink = played(server, crew_of(task_of(solo), task_of(solo)).kickoff)
    assert len(sink.of(names.INVOKE_AGENT)) == 2
    assert edges(sink.spans) == []


def test_a_role_as_yaml_files_write_it(serve):
    server = serve(lambda body: "x")
    agent = agent_of(model_at(server), "  Senior {topic} Analyst\n")
    sink = played(server, lambda: crew_of(task_of(agent)).kickoff(inputs={"topic": "Data"}))
    (chat,) = sink.of(names.CHAT)
    assert chat.attributes[names.AGENT_NAME] == "Senior Data Analyst"
    assert chat.attributes[names.ROLE] == "senior_data_analyst"


def test_flow_with_a_model_an_agent_and_a_crew(serve):
    server = serve(lambda body: "x")

    class Writing(Flow[Any]):
        """Calls a model by hand, then agents in every way."""

        @start()
        def draft(self) -> str:
            return model_at(server).call("draft it")

        @listen(draft)
        async def think(self, _: str) -> str:
            return (await agent_of(model_at(server), "Thinker").kickoff_async("think")).raw

        @listen(think)
        async def think_again(self, _: str) -> Any:
            return await agent_of(model_at(server), "Thinker").kickoff("think")

        @listen(think_again)
        def write(self, _: Any) -> str:
            return two_agents(server).kickoff().raw

        @listen(write)
        def check(self, _: str) -> str:
            return asked_with_the_sdk(server)

    sink = played(server, Writing(suppress_flow_events=True).kickoff)
    assert outline(sink.spans) == [
        "invoke_workflow Writing",
        "> chat draft",
        "> invoke_agent Thinker",
        "> > chat Thinker",
        "> invoke_agent Thinker",
        "> > chat Thinker",
        *[f"> {line}" for line in TWO_AGENTS],
        "> chat check",
    ]


@tool("add")
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def two_sums(body: dict[str, Any]) -> Any:
    if tool_results(body):
        return " and ".join(tool_results(body))
    sums = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    return {"tool_calls": [{"name": "add", "arguments": numbers} for numbers in sums]}


@pytest.mark.parametrize("way", ["kickoff", "kickoff_async"])
def test_an_agent_alone_with_tool_calls_side_by_side(serve, way):
    server = serve(two_sums)
    agent = agent_of(model_at(server), "Adder", tools=[add])

    def run() -> None:
        result = getattr(agent, way)("1+2? 3+4?")
        assert (asyncio.run(result) if asyncio.iscoroutine(result) else result).raw == "3 and 7"

    sink = played(server, run)
    assert outline(sink.spans) == [
        "invoke_agent Adder",
        "> chat Adder",
        "> execute_tool add Adder",
        "> execute_tool add Adder",
        "> chat Adder",
    ]
    calls = sink.of(names.EXECUTE_TOOL)
    said = {
        (json.loads(call.attributes[names.TOOL_ARGUMENTS])["a"], call.attributes[names.TOOL_RESULT]) for call in calls
    }
    assert said == {(1, "3"), (3, "7")}
    (asked,) = [chat for chat in sink.of(names.CHAT) if "tool_calls" in chat.attributes[names.OUTPUT_MESSAGES]]
    ids = [one["id"] for one in json.loads(asked.attributes[names.OUTPUT_MESSAGES])[0]["tool_calls"]]
    assert sorted(call.attributes[names.TOOL_CALL_ID] for call in calls) == sorted(ids)


@tool("fails")
def fails(a: int) -> str:
    """Fail."""
    raise ValueError("the tool broke")


def test_a_failing_tool(serve):
    server = serve(
        lambda body: "well" if tool_results(body) else {"tool_calls": [{"name": "fails", "arguments": {"a": 1}}]}
    )
    sink = played(server, crew_of(task_of(agent_of(model_at(server), "Tester", tools=[fails]))).kickoff)
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert (call.status.value, call.status_message) == ("error", "ValueError: the tool broke")
    assert call.attributes[names.AGENT_PATH] == "Tester"


class TextOnly:
    """Makes a model one that is told of its tools in the prompt."""

    @staticmethod
    def of(monkeypatch: pytest.MonkeyPatch, server: ScriptedModel) -> Any:
        model = model_at(server)
        monkeypatch.setattr(type(model), "supports_function_calling", lambda self: False)
        return model


@pytest.mark.parametrize("way", ["kickoff", "akickoff"])
def test_tools_called_in_the_text(serve, monkeypatch, way):
    def script(body: dict[str, Any]) -> str:
        if "Observation: 3" in str(body["messages"]):
            return "Thought: I know.\nFinal Answer: three"
        return 'Thought: I add.\nAction: add\nAction Input: {"a": 1, "b": 2}'

    server = serve(script)
    crew = crew_of(task_of(agent_of(TextOnly.of(monkeypatch, server), "Adder", tools=[add])))

    def run() -> None:
        result = getattr(crew, way)()
        assert (asyncio.run(result) if asyncio.iscoroutine(result) else result).raw == "three"

    sink = played(server, run)
    assert outline(sink.spans)[1:] == [
        "> invoke_agent Adder",
        "> > chat Adder",
        "> > execute_tool add Adder",
        "> > chat Adder",
    ]
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert json.loads(call.attributes[names.TOOL_ARGUMENTS]) == {"a": 1, "b": 2}
    assert call.attributes[names.TOOL_RESULT] == "3"


def asked_with_the_sdk(server: ScriptedModel) -> str:
    """The answer to a question that goes out without CrewAI."""
    client = openai.OpenAI(base_url=server.base_url, api_key="sk-none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "plain"}]
    return str(client.chat.completions.create(model="scripted", messages=messages).choices[0].message.content)


def test_calls_with_the_sdk_inside_a_tool_are_the_agents(serve):
    def script(body: dict[str, Any]) -> Any:
        if "plain" in str(body["messages"]):
            return "from the tool"
        return "done" if tool_results(body) else {"tool_calls": [{"name": "ask_model", "arguments": {"text": "x"}}]}

    server = serve(script)

    @tool("ask_model")
    def ask_model(text: str) -> str:
        """Ask a model."""
        return asked_with_the_sdk(server)

    sink = played(server, crew_of(task_of(agent_of(model_at(server), "Asker", tools=[ask_model]))).kickoff)
    assert outline(sink.spans)[1:] == [
        "> invoke_agent Asker",
        "> > chat Asker",
        "> > execute_tool ask_model Asker",
        "> > > chat Asker",
        "> > chat Asker",
    ]


def test_an_agent_with_a_time_limit_runs_in_a_thread_of_its_own(serve):
    server, threads = serve(two_sums), set()

    @tool("add")
    def add_here(a: int, b: int) -> str:
        """Add two numbers."""
        threads.add(threading.current_thread())
        return str(a + b)

    agent = agent_of(model_at(server), "Timed", tools=[add_here], max_execution_time=30)
    sink = played(server, crew_of(task_of(agent)).kickoff)
    assert threading.current_thread() not in threads
    assert {span.attributes[names.AGENT_PATH] for span in sink.spans if names.AGENT_PATH in span.attributes} == {
        "Timed"
    }
    assert len(sink.spans) == 6


def test_an_agent_out_of_time(serve):
    server = serve(lambda body: Reply("late", delay_seconds=1.2))
    crew = crew_of(task_of(agent_of(model_at(server), "Slow", max_execution_time=1)))

    def run() -> None:
        with pytest.raises(TimeoutError):
            crew.kickoff()

    sink = played(server, run)
    assert outline(sink.spans) == ["invoke_workflow team", "> invoke_agent Slow", "> > chat Slow"]
    (agent,) = sink.of(names.INVOKE_AGENT)
    assert agent.attributes[names.ERROR_TYPE] == "TimeoutError"


def test_planning_is_an_agent_before_the_first(serve):
    plans = [{"task_number": number, "task": "t", "plan": "do it"} for number in (1, 2)]

    def script(body: dict[str, Any]) -> str:
        return "x" if said_by(body) in ("Alpha", "Beta") else json.dumps({"list_of_plans_per_task": plans})

    server = serve(script)
    model = model_at(server)

    def script_of_planner(body: dict[str, Any]) -> str:
        return json.dumps({"list_of_plans_per_task": plans})

    planner = serve(script_of_planner)
    sink = played(server, two_agents(server, model=model, planning=True, planning_llm=model_at(planner)).kickoff)
    assert [chat.attributes[names.AGENT_PATH] for chat in sink.of(names.CHAT)] == [
        "Task Execution Planner",
        "Alpha",
        "Beta",
    ]
    assert edges(sink.spans) == ALPHA_TO_BETA


def test_an_agent_that_plans_its_work_itself(serve):
    server = serve(lambda body: '{"plan": "p", "steps": [], "ready": true}')
    sink = played(server, crew_of(task_of(agent_of(model_at(server), "Thinker", planning=True))).kickoff)
    assert outline(sink.spans) == ["invoke_workflow team", "> invoke_agent Thinker", *["> > chat Thinker"] * 2]


def test_a_guardrail_sends_back_to_the_same_activation(serve):
    server, tries = serve(lambda body: "x"), []

    def at_second_try(output):  # CrewAI reads the annotations.
        tries.append(output)
        return len(tries) > 1, output.raw if len(tries) > 1 else "once more"

    sink = played(server, crew_of(task_of(agent_of(model_at(server), "Writer"), guardrail=at_second_try)).kickoff)
    assert outline(sink.spans) == ["invoke_workflow team", "> invoke_agent Writer", *["> > chat Writer"] * 2]


def test_a_guardrail_by_a_model_is_an_agent_of_its_own(serve):
    server = serve(lambda body: "x" if said_by(body) else json.dumps({"valid": True, "feedback": None}))
    sink = played(server, crew_of(task_of(agent_of(model_at(server), "Writer"), guardrail="be short")).kickoff)
    assert [chat.attributes[names.AGENT_PATH] for chat in sink.of(names.CHAT)] == ["Writer", "Writer/Guardrail Agent"]


class Verdict(BaseModel):
    """What a task must give."""

    good: bool


def test_the_conversion_of_an_output_is_the_agents(serve):
    server = serve(lambda body: "plain words" if said_by(body) else '{"good": true}')
    result: list[Any] = []
    crew = crew_of(task_of(agent_of(model_at(server), "Judge", tools=[add]), output_pydantic=Verdict))
    sink = played(server, lambda: result.append(crew.kickoff()))
    assert result[0].pydantic == Verdict(good=True)
    assert outline(sink.spans) == ["invoke_workflow team", "> invoke_agent Judge", *["> > chat Judge"] * 2]


def test_agents_by_hand_inside_a_tool_are_delegated_to(serve):
    def script(body: dict[str, Any]) -> Any:
        if said_by(body) == "Inner":
            return "inner"
        return "outer" if tool_results(body) else {"tool_calls": [{"name": "consult", "arguments": {"text": "x"}}]}

    server = serve(script)
    inner: Agent = agent_of(model_at(server), "Inner")

    @tool("consult")
    def consult(text: str) -> str:
        """Consult another."""
        return str(inner.kickoff(text).raw)

    sink = played(server, lambda: agent_of(model_at(server), "Outer", tools=[consult]).kickoff("go"))
    assert [chat.attributes[names.AGENT_PATH] for chat in sorted(sink.of(names.CHAT), key=lambda s: s.start_ns)] == [
        "Outer",
        "Outer/Inner",
        "Outer",
    ]
    episode = build_episode("t", "at-test", "ro-test", sink.spans, [])
    assert [(edge.kind, edge.source, edge.target) for edge in episode.edges] == [("delegation", "Outer", "Inner")]


def test_a_model_called_by_hand_has_the_name_of_nobody(serve):
    server = serve(lambda body: "x")
    sink = played(server, lambda: model_at(server).call("hi"))
    played_by_acting = ListSink()
    with attempt_scope(scope_of(server, played_by_acting)), coterie.agent("poet"):
        assert model_at(server).call("hi") == "x"
    assert outline(sink.spans) == ["chat agent"]
    assert [chat.attributes[names.AGENT_PATH] for chat in played_by_acting.of(names.CHAT)] == ["poet"]
