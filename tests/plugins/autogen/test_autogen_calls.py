"""Tool calls and model calls of AutoGen's agents: whose they are, what came of them, and that each is there once."""

from __future__ import annotations

import asyncio
import json
import warnings
from dataclasses import dataclass
from typing import Any

import openai
import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

from autogen_agentchat.agents import AssistantAgent, CodeExecutorAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import (
    AgentId,
    CancellationToken,
    DefaultTopicId,
    FunctionCall,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    default_subscription,
    message_handler,
)
from autogen_core.code_executor import CodeExecutor, CodeResult
from autogen_core.memory import ListMemory, MemoryContent
from autogen_core.models import ChatCompletionClient, CreateResult, RequestUsage, UserMessage
from autogen_core.tools import FunctionTool, StaticWorkbench
from autogen_ext.models.replay import ReplayChatCompletionClient
from autogen_spans import MODEL_INFO, edges, episode, model_client, paths
from reading_spans import last_text, outline, scope_of, system_text

import coterie
from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test

pytestmark = pytest.mark.usefixtures("recording")


def asking_for(tool: str, **arguments: Any) -> Any:
    """A model that calls a tool once and then says what came of it."""

    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return f"got {last_text(body)}"
        return {"tool_calls": [{"name": tool, "arguments": arguments}]}

    return script


def coder(server: Any, **settings: Any) -> AssistantAgent:
    return AssistantAgent("coder", model_client(server), system_message="coder", **settings)


@pytest.mark.parametrize("in_team", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_model_call_inside_a_tool_is_the_agents(serve, kind, in_team):
    server, sink = serve(asking_for("look", word="x")), ListSink()
    helper = serve(lambda body: "looked up")
    said = {"model": "scripted", "messages": [{"role": "user", "content": "look up"}]}

    def look(word: str) -> str:
        client = openai.OpenAI(base_url=helper.base_url, api_key="none", max_retries=0)
        return str(client.chat.completions.create(**said).choices[0].message.content)

    async def look_async(word: str) -> str:
        client = openai.AsyncOpenAI(base_url=helper.base_url, api_key="none", max_retries=0)
        return str((await client.chat.completions.create(**said)).choices[0].message.content)

    tool = FunctionTool(look if kind == "sync" else look_async, "Look up.", name="look")
    function = tool._func
    agent = coder(server, tools=[tool])
    with attempt_scope(scope_for_test(sink)):
        await (RoundRobinGroupChat([agent], max_turns=1) if in_team else agent).run(task="go")

    shown = ["invoke_agent coder", "> chat coder", "> execute_tool look coder", "> > chat coder"]
    assert outline(sink.spans)[-4:] == [f"> {line}" if in_team else line for line in shown]
    (call,) = episode(sink.spans).tool_calls
    assert (call.arguments, call.result, call.error) == ('{"word": "x"}', "looked up", None)
    assert call.call_id
    assert tool._func is function


async def test_agents_of_ones_own_in_a_plain_function_tool_are_delegations(serve):
    server, sink = serve(asking_for("ask")), ListSink()
    helper = AssistantAgent("helper", model_client(serve(lambda body: "helped")), system_message="helper")

    def ask() -> str:
        """Ask."""
        result: TaskResult = asyncio.run(helper.run(task="help"))
        return result.messages[-1].to_text()

    with attempt_scope(scope_of(server, sink)):
        scope = scope_for_test(sink)
        with attempt_scope(scope):
            await coder(server, tools=[ask]).run(task="go")
    assert paths(sink) == ["coder", "coder/helper"]
    assert edges(sink.spans) == [("delegation", "coder", "helper")]


async def test_tools_side_by_side(serve):
    def script(body: dict[str, Any]) -> Any:
        return {"tool_calls": [{"name": "double", "arguments": {"n": n}} for n in range(6)]}

    async def double(n: int) -> int:
        """Double."""
        await asyncio.sleep(0.01 * (6 - n))
        return 2 * n

    server, sink = serve(script), ListSink()
    with attempt_scope(scope_of(server, sink)):
        await coder(server, tools=[double]).run(task="go")
    calls = episode(sink.spans).tool_calls
    assert sorted((json.loads(call.arguments)["n"], call.result, call.agent_path) for call in calls) == [
        (n, str(2 * n), "coder") for n in range(6)
    ]


@pytest.mark.parametrize("tool", ["fail", "missing"])
async def test_errors_of_tools_are_recorded_and_reach_the_model_as_ever(serve, tool):
    def fail(path: str) -> str:
        """Fail."""
        raise KeyError(path)

    server, sink = serve(asking_for(tool, path="a.py")), ListSink()
    with attempt_scope(scope_of(server, sink)):
        result = await coder(server, tools=[fail], reflect_on_tool_use=True).run(task="go")

    told = {"fail": "'a.py'", "missing": "Error: tool 'missing' not found in any workbench"}[tool]
    assert result.messages[-1].to_text() == f"got {told}"
    (call,) = episode(sink.spans).tool_calls
    assert (call.name, call.result) == (tool, told)
    assert call.error == {"fail": "KeyError: 'a.py'", "missing": told}[tool]
    (span,) = sink.of(names.EXECUTE_TOOL)
    assert span.attributes[names.ERROR_TYPE] == {"fail": "KeyError", "missing": "ToolError"}[tool]
    (activation,) = sink.of(names.INVOKE_AGENT)
    assert activation.status.value == "unset"


async def test_arguments_that_are_no_json(serve):
    asked = {"id": "c1", "type": "function", "function": {"name": "run", "arguments": "{no json"}}

    def script(body: dict[str, Any]) -> Any:
        return "sorry" if body["messages"][-1]["role"] == "tool" else {"tool_calls": [asked]}

    def run(path: str) -> str:
        """Run."""
        return path

    server, sink = serve(script), ListSink()
    with attempt_scope(scope_of(server, sink)):
        await coder(server, tools=[run], reflect_on_tool_use=True).run(task="go")
    (call,) = episode(sink.spans).tool_calls
    assert (call.arguments, call.call_id) == ("{no json", "c1")
    assert (call.error or "").startswith("Error: ")


async def test_methods_of_ones_own_that_call_those_they_override(serve):
    class Tool(FunctionTool):
        async def run_json(self, args: Any, cancellation_token: CancellationToken, call_id: str | None = None) -> Any:
            return await super().run_json(args, cancellation_token, call_id)

    class Agent(AssistantAgent):
        async def on_messages(self, messages: Any, cancellation_token: CancellationToken) -> Any:
            return await super().on_messages(messages, cancellation_token)

    class Client(ReplayChatCompletionClient):
        async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
            return await super().create(messages, **kwargs)

    def double(n: int) -> int:
        """Double."""
        return 2 * n

    asked = [FunctionCall(id="c1", name="double", arguments='{"n": 4}')]
    client = Client([told_result(content=asked)], model_info=MODEL_INFO)
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        await Agent("coder", client, tools=[Tool(double, "Double.")]).run(task="go")
        await Tool(double, "Double.").run_json({"n": 1}, CancellationToken())
    assert outline(sink.spans) == [
        "invoke_agent coder",
        "> chat coder",
        "> execute_tool double coder",
        "execute_tool double",
    ]


async def test_tools_and_workbenches_that_are_used_by_themselves():
    def double(n: int) -> int:
        """Double."""
        return 2 * n

    tool, sink = FunctionTool(double, "Double."), ListSink()
    with attempt_scope(scope_for_test(sink)), coterie.agent("clerk"):
        await tool.run_json({"n": 1}, CancellationToken(), call_id="c1")
        await StaticWorkbench([tool]).call_tool("double", {"n": 2}, call_id="c2")
        await StaticWorkbench([tool]).call_tool("double", {"n": "no number"})
        with pytest.raises(ValueError, match="no number"):
            await tool.run_json({"n": "no number"}, CancellationToken())
    calls = episode(sink.spans).tool_calls
    assert [(call.name, call.agent_path, call.call_id, call.result) for call in calls[:2]] == [
        ("double", "clerk", "c1", "2"),
        ("double", "clerk", "c2", "4"),
    ]
    assert [bool(call.error) for call in calls] == [False, False, True, True]
    assert sink.spans[2].attributes[names.ERROR_TYPE] == "ValidationError"


@pytest.mark.parametrize("exit_code", [0, 1])
async def test_running_code_is_a_tool_call(serve, exit_code):
    server, sink = serve(lambda body: "```python\nprint(4)\n```"), ListSink()

    class Executor(CodeExecutor):
        component_type = "code_executor"

        async def execute_code_blocks(self, code_blocks: Any, cancellation_token: Any) -> Any:
            return CodeResult(exit_code=exit_code, output="4")

        async def start(self) -> None: ...
        async def stop(self) -> None: ...
        async def restart(self) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = CodeExecutorAgent("runner", Executor())
    team = RoundRobinGroupChat([coder(server), runner], max_turns=2)
    with attempt_scope(scope_of(server, sink)):
        await team.run(task="go")
    (call,) = episode(sink.spans).tool_calls
    assert (call.name, call.agent_path, bool(call.error)) == ("execute_code", "runner", exit_code == 1)
    assert json.loads(call.arguments) == {"code_blocks": [{"language": "python", "code": "print(4)\n"}]}
    assert call.result.endswith("4")
    assert edges(sink.spans) == [("message", "coder", "runner")]


async def test_memory_is_read_before_the_agent_speaks(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    memory = ListMemory()
    await memory.add(MemoryContent(content="the user likes tests", mime_type="text/plain"))
    with attempt_scope(scope_of(server, sink)):
        await AssistantAgent("coder", model_client(server), system_message=None, memory=[memory]).run(task="go")
    assert outline(sink.spans) == ["invoke_agent coder", "> chat coder"]
    assert "the user likes tests" in str(episode(sink.spans).turns[0].messages)


def told_result(**fields: Any) -> CreateResult:
    usage = RequestUsage(prompt_tokens=3, completion_tokens=2)
    return CreateResult(**({"finish_reason": "stop", "content": "hi", "usage": usage, "cached": False} | fields))


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_that_capture_cannot_see_are_told_once_each(streamed):
    asked = [FunctionCall(id="c1", name="double", arguments='{"n": 4}')]
    client = ReplayChatCompletionClient(
        [told_result(content=asked, finish_reason="function_calls", thought="hm"), "the answer is 8"],
        model_info=MODEL_INFO,
    )

    def double(n: int) -> int:
        """Double."""
        return 2 * n

    agent = AssistantAgent(
        "coder", client, tools=[double], system_message="S", reflect_on_tool_use=True, model_client_stream=streamed
    )
    sink = ListSink()
    scope = scope_for_test(sink)
    with attempt_scope(scope):
        await RoundRobinGroupChat([agent], max_turns=1).run(task="go")

    assert outline(sink.spans) == [
        "invoke_workflow RoundRobinGroupChat",
        "> invoke_agent coder",
        "> > chat coder",
        "> > execute_tool double coder",
        "> > chat coder",
    ]
    first, second = episode(sink.spans).turns
    call = {"id": "c1", "type": "function", "function": {"name": "double", "arguments": '{"n": 4}'}}
    assert first.messages == ({"role": "system", "content": "S"}, {"role": "user", "content": "go"})
    assert first.output == ({"role": "assistant", "content": "hm", "tool_calls": [call]},)
    assert second.messages[-2:] == (first.output[0], {"role": "tool", "tool_call_id": "c1", "content": "8"})
    assert (second.text, second.index, second.finish_reason) == ("the answer is 8", 1, "stop")
    assert [summary.text for summary in scope.calls] == ["hm", "the answer is 8"]
    chat = sink.of(names.CHAT)[0]
    assert chat.attributes[names.OUTPUT_TOKENS] == 2
    assert json.loads(chat.attributes[names.TOOL_DEFINITIONS])[0]["function"]["name"] == "double"


class Router(ChatCompletionClient):
    """A client of the user's own, defined after recording began, that asks one of two others."""

    component_type = "model"

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
        try:
            return await self.first.create(messages, **kwargs)
        except Exception:
            return await self.second.create(messages, **kwargs)

    async def create_stream(self, messages: Any, **kwargs: Any) -> Any:
        async for item in self.second.create_stream(messages, **kwargs):
            yield item

    async def close(self) -> None: ...
    def actual_usage(self) -> Any: ...
    def total_usage(self) -> Any: ...
    def count_tokens(self, messages: Any, **_: Any) -> int:
        return 0

    def remaining_tokens(self, messages: Any, **_: Any) -> int:
        return 1000

    @property
    def capabilities(self) -> Any:
        return MODEL_INFO

    @property
    def model_info(self) -> Any:
        return MODEL_INFO


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_asks_others_is_no_call_of_its_own(serve, streamed):
    server, sink = serve(lambda body: "from the server"), ListSink()
    router = Router(ReplayChatCompletionClient([], model_info=MODEL_INFO), model_client(server))
    with attempt_scope(scope_of(server, sink)):
        await AssistantAgent("coder", router, model_client_stream=streamed).run(task="go")
    turns = episode(sink.spans).turns
    assert [(turn.text, bool(turn.error), turn.trainable) for turn in turns] == (
        [("from the server", False, True)] if streamed else [("", True, False), ("from the server", False, True)]
    )
    assert {turn.agent_path for turn in turns} == {"coder"}


async def test_a_model_client_without_an_agent(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        await model_client(server).create([UserMessage(content="a", source="user")])
        await ReplayChatCompletionClient(["b"]).create([UserMessage(content="b", source="user")])
        async for _ in ReplayChatCompletionClient(["c"]).create_stream([UserMessage(content="c", source="user")]):
            pass
    assert paths(sink) == ["agent", "agent", "agent"]
    assert [turn.text for turn in episode(sink.spans).turns] == ["ok", "b", "c"]


@dataclass
class Message:
    """What agents of the Core API send each other."""

    text: str


async def test_agents_of_the_core_api(serve):
    server, sink = serve(system_text), ListSink()

    @default_subscription
    class Worker(RoutedAgent):
        @message_handler
        async def on_text(self, message: Message, ctx: MessageContext) -> None:
            if (ctx.sender is not None and ctx.sender.type == self.id.type) or len(sink.of(names.CHAT)) > 1:
                return
            client = model_client(server)
            answer = await client.create([UserMessage(content=self.id.type, source="user")])
            await self.publish_message(Message(str(answer.content)), DefaultTopicId())

    runtime = SingleThreadedAgentRuntime(ignore_unhandled_exceptions=False)
    await Worker.register(runtime, "planner", lambda: Worker("plans"))
    await Worker.register(runtime, "coder", lambda: Worker("codes"))
    with attempt_scope(scope_of(server, sink)):
        runtime.start()
        await runtime.send_message(Message("go"), AgentId("planner", "default"))
        await runtime.stop_when_idle()

    assert outline(sink.spans) == [
        "invoke_agent planner",
        "> chat planner",
        "invoke_agent coder",
        "> chat coder",
    ]
    assert edges(sink.spans) == [("message", "planner", "coder")]
