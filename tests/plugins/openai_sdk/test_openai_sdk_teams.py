"""Teams of the OpenAI Agents SDK: who acted, what they called, who came after whom."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import pytest
from agents import Agent, GuardrailFunctionOutput, RunConfig, Runner, function_tool
from openai import AsyncOpenAI, OpenAI
from reading_spans import scope_of
from sdk_teams import MODEL_CLASSES, agent, call, edges, episode_of, model_at, outline, results, run, who

import coterie
from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, Reply, scope_for_test
from coterie.vocabulary import Span

pytestmark = pytest.mark.usefixtures("recording")


def answer(body: dict[str, Any]) -> Any:
    """A planner asks the coder, then hands over to the reviewer; the coder runs the tests first."""
    match who(body), bool(results(body)):
        case "planner", False:
            return call("ask_coder", input="write it")
        case "planner", True:
            return call("transfer_to_reviewer")
        case "coder", False:
            return call("run_tests", path="a.py")
        case "coder", True:
            return "written"
    return "fine"


def team_of(model: Any) -> Agent[Any]:
    @function_tool
    def run_tests(path: str) -> str:
        """Run the tests."""
        return f"passed {path}"

    coder = agent("coder", model, tools=[run_tests])
    return agent(
        "planner", model, tools=[coder.as_tool("ask_coder", "Ask the coder.")], handoffs=[agent("reviewer", model)]
    )


TEAM = [
    "invoke_workflow Agent workflow",
    "> invoke_agent planner",
    "> > chat planner",
    "> > execute_tool ask_coder planner",
    "> > > invoke_agent planner/coder",
    "> > > > chat planner/coder",
    "> > > > execute_tool run_tests planner/coder",
    "> > > > chat planner/coder",
    "> > chat planner",
    "> invoke_agent reviewer",
    "> > chat reviewer",
]


def _by_variable(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    agents.tracing.get_trace_provider()._refresh_disabled_flag()
    return {}


def _by_function(_: pytest.MonkeyPatch) -> dict[str, Any]:
    agents.set_tracing_disabled(True)
    return {}


TRACING = {
    "traced": lambda _: {},
    "by variable": _by_variable,
    "by function": _by_function,
    "by configuration": lambda _: {"run_config": RunConfig(tracing_disabled=True)},
}


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("tracing", TRACING)
async def test_the_whole_team(serve, monkeypatch, model_class, streamed, tracing):
    settings = TRACING[tracing](monkeypatch)
    server, sink = serve(answer), ListSink()
    with attempt_scope(scope_of(server, sink)) as scope:
        result = await run(team_of(model_at(server, model_class)), streamed=streamed, **settings)
    assert scope._open_calls == {}
    assert result.final_output == "fine"
    assert result.last_agent.name == "reviewer"
    assert outline(sink.spans) == TEAM
    assert edges(sink) == [("delegation", "planner", "coder"), ("handoff", "planner", "reviewer")]
    (tests,) = [tool for tool in episode_of(sink).tool_calls if tool.carries is None]
    assert (tests.name, tests.arguments, tests.result, tests.error) == (
        "run_tests",
        '{"path": "a.py"}',
        "passed a.py",
        None,
    )
    assert tests.call_id is not None
    assert {span.status for span in sink.spans} == {"unset"}
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))


def test_run_sync_in_a_thread(serve):
    server, sink = serve(answer), ListSink()
    with attempt_scope(scope_of(server, sink)):
        result = Runner.run_sync(team_of(model_at(server)), "go", run_config=RunConfig(workflow_name="shop"))
    assert result.final_output == "fine"
    assert outline(sink.spans) == ["invoke_workflow shop", *TEAM[1:]]


async def test_nothing_acts_after_a_run(serve):
    server = serve(lambda body: "hi")
    await run(agent("solo", model_at(server)))
    result = Runner.run_streamed(agent("solo", model_at(server)), "go")
    assert coterie.roles.current_identity() is None
    async for _ in result.stream_events():
        assert coterie.roles.current_identity() is None


async def test_a_run_inside_an_agent_of_another_make(serve):
    server, sink = serve(answer), ListSink()
    with attempt_scope(scope_of(server, sink)), coterie.agent("boss"):
        await run(team_of(model_at(server)))
        assert coterie.roles.current_identity().path == ("boss",)
    paths = [turn.agent_path for turn in episode_of(sink).turns]
    assert paths == ["boss/planner", "boss/planner/coder", "boss/planner/coder", "boss/planner", "boss/reviewer"]
    assert outline(sink.spans)[:3] == [
        "invoke_agent boss",
        "> invoke_workflow Agent workflow boss",
        "> > invoke_agent boss/planner",
    ]


async def test_the_role_map_holds(serve):
    coterie.instrument(roles={"Senior Coder": "coder"})
    server, sink = serve(lambda body: "hi"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        await run(agent("Senior Coder", model_at(server)))
    (turn,) = episode_of(sink).turns
    assert (turn.agent, turn.role) == ("Senior Coder", "coder")


async def test_agents_as_tools_side_by_side(serve):
    """Each of two delegated agents makes two calls while the other one works; one is delegated to twice at once."""

    def script(body: dict[str, Any]) -> Any:
        name, seen = who(body), results(body)
        if name == "boss" and not seen:
            asked = [call(f"ask_{one}", input=one)["tool_calls"][0] for one in ("ann", "bob", "ann")]
            return {"content": "", "tool_calls": asked}
        if name == "boss":
            return " ".join(seen)
        return Reply(tool_calls=call("look", at=name)["tool_calls"], delay_seconds=0.01) if not seen else f"{name} done"

    @function_tool
    async def look(at: str) -> str:
        """Look."""
        await asyncio.sleep(0.01)
        return f"seen by {coterie.roles.current_identity()} for {at}"

    server, sink = serve(script), ListSink()
    model = model_at(server)
    workers = [agent(name, model, tools=[look]).as_tool(f"ask_{name}", "Ask.") for name in ("ann", "bob")]
    with attempt_scope(scope_of(server, sink)):
        result = await run(agent("boss", model, tools=workers))
    assert result.final_output == "ann done bob done ann done"
    episode = episode_of(sink)
    assert sorted(turn.agent_path for turn in episode.turns) == ["boss"] * 2 + ["boss/ann"] * 4 + ["boss/bob"] * 2
    assert sorted(edges(sink)) == [("delegation", "boss", "ann")] * 2 + [("delegation", "boss", "bob")]
    looks = [tool for tool in episode.tool_calls if tool.name == "look"]
    assert len(looks) == 3
    for tool in looks:
        name = tool.agent_path.removeprefix("boss/")
        assert f"agent='{name}'" in tool.result
        assert tool.result.endswith(f"for {name}")


async def test_a_run_inside_a_plain_tool_is_a_delegation(serve):
    server, sink = serve(lambda body: call("ask") if who(body) == "boss" and not results(body) else "done"), ListSink()
    model = model_at(server)
    helper = agent("helper", model)

    @function_tool
    async def ask() -> str:
        """Ask a helper."""
        return (await Runner.run(helper, "go")).final_output

    with attempt_scope(scope_of(server, sink)):
        await run(agent("boss", model, tools=[ask]))
    assert outline(sink.spans)[2:6] == [
        "> > chat boss",
        "> > execute_tool ask boss",
        "> > > invoke_agent boss/helper",
        "> > > > chat boss/helper",
    ]
    assert edges(sink) == [("delegation", "boss", "helper")]


async def test_hand_offs_there_and_back_and_below_a_delegation(serve):
    def script(body: dict[str, Any]) -> Any:
        match who(body), len(results(body)):
            case "boss", 0:
                return call("ask_front", input="x")
            case "front", 0:
                return call("transfer_to_back")
            case "back", 1:
                return call("transfer_to_front")
        return "done"

    server, sink = serve(script), ListSink()
    model = model_at(server)
    front, back = agent("front", model), agent("back", model)
    front.handoffs, back.handoffs = [back], [front]
    with attempt_scope(scope_of(server, sink)):
        await run(agent("boss", model, tools=[front.as_tool("ask_front", "Ask.")]))
    assert [turn.agent_path for turn in episode_of(sink).turns] == [
        "boss",
        "boss/front",
        "boss/back",
        "boss/front",
        "boss",
    ]
    assert [line for line in outline(sink.spans) if "invoke_agent" in line] == [
        "> invoke_agent boss",
        "> > > invoke_agent boss/front",
        "> > > invoke_agent boss/back",
        "> > > invoke_agent boss/front",
    ]
    assert [edge for edge in edges(sink) if edge[0] == "handoff"] == [
        ("handoff", "front", "back"),
        ("handoff", "back", "front"),
    ]
    assert ("delegation", "boss", "front") in edges(sink)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("trips", [False, True])
async def test_agents_in_guardrails(serve, streamed, trips):
    """A guard beside the first turn is below the agent that it guards, and no edge leads to it."""
    server, sink = serve(lambda body: Reply(who(body), delay_seconds=0.05 if who(body) == "clerk" else 0)), ListSink()
    model = model_at(server)
    guard = agent("guard", model)

    @agents.input_guardrail
    async def guarded(context: Any, _: Any, given: Any) -> GuardrailFunctionOutput:
        said = await Runner.run(guard, given, context=context.context)
        return GuardrailFunctionOutput(output_info=said.final_output, tripwire_triggered=trips)

    @agents.output_guardrail
    async def judged(context: Any, _: Any, output: Any) -> GuardrailFunctionOutput:
        said = await Runner.run(agent("judge", model), output)
        return GuardrailFunctionOutput(output_info=said.final_output, tripwire_triggered=False)

    clerk = agent("clerk", model, input_guardrails=[guarded], output_guardrails=[judged])
    with attempt_scope(scope_of(server, sink)):
        if trips:
            with pytest.raises(agents.InputGuardrailTripwireTriggered):
                await run(clerk, streamed=streamed)
        else:
            await run(clerk, streamed=streamed)
    lines = outline(sink.spans)
    assert "> > invoke_agent clerk/guard" in lines
    assert "> > > chat clerk/guard" in lines
    assert ("> > > chat clerk/judge" in lines) is not trips
    assert edges(sink) == []
    of = {span.name: span for span in sink.spans}
    if trips:
        assert of["invoke_workflow Agent workflow"].attributes[names.ERROR_TYPE] == "InputGuardrailTripwireTriggered"
        assert of["invoke_agent guard"].status == "unset"


async def test_a_blocking_guardrail_before_the_first_turn(serve):
    server, sink = serve(lambda body: "fine"), ListSink()
    model = model_at(server)

    async def check(*_: Any) -> GuardrailFunctionOutput:
        await Runner.run(agent("guard", model), "x")
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    guard = agents.InputGuardrail(check, run_in_parallel=False)
    with attempt_scope(scope_of(server, sink)):
        await run(agent("clerk", model, input_guardrails=[guard]))
    assert outline(sink.spans)[1:] == [
        "> invoke_agent clerk",
        "> > invoke_agent clerk/guard",
        "> > > chat clerk/guard",
        "> > chat clerk",
    ]


def _only(spans: list[Span]) -> Span:
    (span,) = spans
    return span


async def test_calls_that_a_tool_makes_by_itself(serve):
    """In a thread, as sync tools run, and in the loop; also inside an ``agent`` block of the user's."""
    server, sink = (
        serve(lambda body: "hm" if "messages" in body else call("think") if not results(body) else "x"),
        ListSink(),
    )

    @function_tool
    def think() -> str:
        """Think."""
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        ask = [{"role": "user", "content": "?"}]
        client.chat.completions.create(model="m", messages=ask)
        with coterie.roles.acting_as("inner voice"):
            client.chat.completions.create(model="m", messages=ask)
        return "ok"

    with attempt_scope(scope_of(server, sink)):
        await run(agent("thinker", model_at(server), tools=[think]))
    assert outline(sink.spans)[2:] == [
        "> > chat thinker",
        "> > execute_tool think thinker",
        "> > > chat thinker",
        "> > > chat thinker/inner voice",
        "> > chat thinker",
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_tools_error_that_the_model_gets(serve, streamed):
    server, sink = serve(lambda body: call("broken", x=1) if not results(body) else results(body)[0]), ListSink()

    @function_tool
    def broken(x: int) -> str:
        """Break."""
        raise ValueError(f"no {x}")

    with attempt_scope(scope_of(server, sink)):
        result = await run(agent("solo", model_at(server), tools=[broken]), streamed=streamed)
    tool = _only(sink.of(names.EXECUTE_TOOL))
    assert tool.status == "error"
    assert tool.attributes[names.ERROR_TYPE] == "ToolError"
    assert tool.attributes[names.TOOL_RESULT] == result.final_output
    assert {span.status for span in sink.spans if span is not tool} == {"unset"}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_tools_error_that_ends_the_run(serve, streamed):
    server, sink = serve(lambda body: call("broken")), ListSink()

    @function_tool(failure_error_function=None)
    def broken() -> str:
        """Break."""
        raise ValueError("mine")

    with attempt_scope(scope_of(server, sink)), pytest.raises(agents.UserError) as caught:
        await run(agent("solo", model_at(server), tools=[broken]), streamed=streamed)
    assert isinstance(caught.value.__cause__, ValueError)
    tool = _only(sink.of(names.EXECUTE_TOOL))
    assert (tool.status, tool.attributes[names.ERROR_TYPE]) == ("error", "ToolError")
    assert {span.attributes.get(names.ERROR_TYPE) for span in sink.of(names.INVOKE_AGENT)} == {"UserError"}
    assert {span.attributes.get(names.ERROR_TYPE) for span in sink.of(names.INVOKE_WORKFLOW)} == {"UserError"}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_too_many_turns(serve, streamed):
    server, sink = serve(lambda body: call("again")), ListSink()

    @function_tool
    def again() -> str:
        """Again."""
        return "again"

    with attempt_scope(scope_of(server, sink)), pytest.raises(agents.MaxTurnsExceeded):
        await run(agent("solo", model_at(server), tools=[again]), streamed=streamed, max_turns=2)
    assert len(sink.of(names.CHAT)) == 2
    assert {span.attributes.get(names.ERROR_TYPE) for span in sink.of(names.INVOKE_AGENT)} == {"MaxTurnsExceeded"}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_model_that_fails(serve, streamed):
    server, sink = serve(lambda body: 400), ListSink()
    import openai

    with attempt_scope(scope_of(server, sink)), pytest.raises(openai.BadRequestError):
        await run(agent("solo", model_at(server)), streamed=streamed)
    assert [(span.name.split()[0], span.status.value) for span in sink.spans] == [
        ("chat", "error"),
        ("invoke_agent", "error"),
        ("invoke_workflow", "error"),
    ]


async def test_sessions_and_input_lists(serve, tmp_path):
    server, sink = serve(lambda body: "hi"), ListSink()
    session = agents.SQLiteSession("s", tmp_path / "s.db")
    solo = agent("solo", model_at(server))
    try:
        with attempt_scope(scope_of(server, sink)):
            await run(solo, "first", session=session)
            await run(solo, "second", session=session)
    finally:
        session.close()
    first, second = episode_of(sink).turns
    assert (first.index, second.index) == (0, 1)
    assert len(second.messages) > len(first.messages)


async def test_an_approval_in_between(serve):
    server, sink = serve(lambda body: call("drop") if not results(body) else "dropped"), ListSink()

    @function_tool(needs_approval=True)
    def drop() -> str:
        """Drop."""
        return "gone"

    solo = agent("solo", model_at(server), tools=[drop])
    with attempt_scope(scope_of(server, sink)):
        result = await run(solo)
        assert sink.of(names.EXECUTE_TOOL) == []
        state = result.to_state()
        state.approve(result.interruptions[0])
        assert (await run(solo, state)).final_output == "dropped"
    tool = _only(sink.of(names.EXECUTE_TOOL))
    assert tool.attributes[names.TOOL_RESULT] == "gone"
    assert [turn.agent_path for turn in episode_of(sink).turns] == ["solo", "solo"]


async def test_an_approval_inside_a_delegated_agent(serve):
    def script(body: dict[str, Any]) -> Any:
        seen = results(body)
        if who(body) == "boss":
            return seen[0] if seen else call("ask_clerk", input="x")
        return "dropped" if seen else call("drop")

    @function_tool(needs_approval=True)
    def drop() -> str:
        """Drop."""
        return "gone"

    server, sink = serve(script), ListSink()
    model = model_at(server)
    boss = agent("boss", model, tools=[agent("clerk", model, tools=[drop]).as_tool("ask_clerk", "Ask.")])
    with attempt_scope(scope_of(server, sink)) as scope:
        result = await run(boss)
        state = result.to_state()
        state.approve(result.interruptions[0])
        assert (await run(boss, state)).final_output == "dropped"
    assert scope._open_calls == {}
    assert [turn.agent_path for turn in episode_of(sink).turns] == ["boss", "boss/clerk", "boss/clerk", "boss"]
    assert edges(sink) == [("delegation", "boss", "clerk")]
    (dropped,) = [tool for tool in episode_of(sink).tool_calls if tool.name == "drop"]
    assert (dropped.agent_path, dropped.result) == ("boss/clerk", "gone")


class DuckServer(agents.mcp.MCPServer):
    """An MCP server in the process."""

    name = "ducks"

    async def connect(self) -> None: ...

    async def cleanup(self) -> None: ...

    async def list_tools(self, *_: Any, **__: Any) -> Any:
        from mcp.types import Tool

        return [Tool(name="quack", description="Quack.", inputSchema={"type": "object", "properties": {}})]

    async def call_tool(self, tool_name: str, *_: Any, **__: Any) -> Any:
        from mcp.types import CallToolResult, TextContent

        return CallToolResult(content=[TextContent(type="text", text=f"{tool_name}!")])

    async def list_prompts(self) -> Any: ...

    async def get_prompt(self, *_: Any, **__: Any) -> Any: ...


async def test_tools_of_mcp_servers(serve):
    server, sink = serve(lambda body: call("quack") if not results(body) else "done"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        await run(agent("solo", model_at(server), mcp_servers=[DuckServer()]))
    (quack,) = episode_of(sink).tool_calls
    assert (quack.name, quack.agent_path, quack.error) == ("quack", "solo", None)
    assert "quack!" in quack.result


def _response(*output: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


async def test_a_local_shell_below_a_delegation(serve):
    """It has no context of its own: that of the tool above must not be taken for it."""
    action = {"type": "exec", "command": ["ls"], "env": {}}
    shell_call = {
        "type": "local_shell_call",
        "id": "ls_1",
        "call_id": "call_ls",
        "status": "completed",
        "action": action,
    }

    def script(body: dict[str, Any]) -> Any:
        if who(body) == "boss":
            return results(body)[0] if results(body) else call("ask_clerk", input="x")
        seen = any(one.get("type") == "local_shell_call_output" for one in body["input"])
        return "listed" if seen else _response(shell_call)

    server, sink = serve(script), ListSink()
    model = model_at(server)
    clerk = agent("clerk", model, tools=[agents.LocalShellTool(executor=lambda request: "a.txt")])
    with attempt_scope(scope_for_test(sink)):
        result = await run(agent("boss", model, tools=[clerk.as_tool("ask_clerk", "Ask.")]))
    assert result.final_output == "listed"
    asked, listed = episode_of(sink).tool_calls
    assert (asked.name, asked.agent_path, asked.carries) == ("ask_clerk", "boss", "delegation")
    assert (listed.name, listed.agent_path, listed.call_id, listed.result) == (
        "local_shell",
        "boss/clerk",
        None,
        "a.txt",
    )


async def test_hosted_tools_are_read_from_the_answer(serve):
    output = [
        {
            "type": "web_search_call",
            "id": "ws_1",
            "status": "completed",
            "action": {"type": "search", "query": "ducks"},
        },
        {
            "type": "mcp_call",
            "id": "mcp_1",
            "server_label": "s",
            "name": "quack",
            "arguments": '{"n": 2}',
            "output": "quack quack",
            "error": None,
        },
        {
            "type": "message",
            "id": "m_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Ducks.", "annotations": []}],
        },
    ]
    server, sink = serve(lambda _: _response(*output)), ListSink()
    with attempt_scope(scope_for_test(sink)):
        await run(agent("solo", model_at(server), tools=[agents.WebSearchTool()]))
    found = {tool.name: tool for tool in episode_of(sink).tool_calls}
    assert '"query": "ducks"' in found["web_search"].arguments
    assert (found["quack"].arguments, found["quack"].result) == ('{"n": 2}', "quack quack")
    assert {tool.agent_path for tool in found.values()} == {"solo"}


async def test_a_stream_left_half_read_ends_with_its_attempt(serve):
    server, sink = serve(lambda body: Reply("a b c d", chunk_delay_seconds=0.2)), ListSink()
    scope = scope_of(server, sink)
    with attempt_scope(scope):
        result = Runner.run_streamed(agent("solo", model_at(server)), "go")
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                break
    scope.end_open_calls()
    assert scope._open_calls == {}
    assert sorted(span.name.split()[0] for span in sink.spans) == ["chat", "invoke_agent", "invoke_workflow"]
    result.cancel()
    await asyncio.sleep(0)


async def test_a_cancelled_run_leaves_nothing_open(serve):
    server, sink = serve(lambda body: Reply("late", delay_seconds=30)), ListSink()
    with attempt_scope(scope_of(server, sink)):
        running = asyncio.create_task(run(agent("solo", model_at(server))))
        await asyncio.sleep(0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert sorted(span.name.split()[0] for span in sink.spans) == ["chat", "invoke_agent", "invoke_workflow"]


async def test_the_default_client_of_the_sdk(serve, monkeypatch):
    """Agents without a model of their own, by the SDK's default provider."""
    server, sink = serve(lambda body: "hi"), ListSink()
    agents.set_default_openai_client(AsyncOpenAI(base_url=server.base_url, api_key="none"), use_for_tracing=False)
    try:
        with attempt_scope(scope_of(server, sink)):
            await run(Agent(name="plain"))
    finally:
        agents.models._openai_shared._default_openai_client = None
    assert outline(sink.spans)[-1] == "> > chat plain"
    assert len(server.requests) == 1
