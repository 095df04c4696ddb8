"""Classic AG2: chats of two, group chats, tools, hand-offs, nested chats, and runs in threads."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Annotated, Any

import pytest

try:
    if not version("ag2").startswith("0."):
        pytest.skip("needs ag2<1", allow_module_level=True)
except PackageNotFoundError:
    pytest.skip("needs ag2<1", allow_module_level=True)

from autogen import AssistantAgent, ConversableAgent, GroupChat, GroupChatManager, LLMConfig, UserProxyAgent
from autogen.agentchat import conversable_agent
from autogen.agentchat.group import AgentTarget, OnCondition, StringLLMCondition
from autogen.agentchat.group.multi_agent_chat import initiate_group_chat
from autogen.agentchat.group.patterns import DefaultPattern
from autogen_spans import edges
from reading_spans import outline, scope_of

import coterie
import coterie_autogen
from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test

pytestmark = pytest.mark.usefixtures("recording")


def system_text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def config(server: ScriptedModel) -> LLMConfig:
    entry = {
        "model": "scripted",
        "base_url": server.base_url,
        "api_key": "none",
        "api_type": "openai",
        "max_retries": 0,
    }
    return LLMConfig(entry, cache_seed=None)


def agent(server: ScriptedModel, name: str, **settings: Any) -> ConversableAgent:
    return ConversableAgent(name, system_message=name, llm_config=config(server), human_input_mode="NEVER", **settings)


def user() -> UserProxyAgent:
    return UserProxyAgent("user", human_input_mode="NEVER", code_execution_config=False)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_two_agents_talk(serve, asynchronous):
    server, sink = serve(system_text), ListSink()
    planner, coder = agent(server, "planner"), agent(server, "coder")
    with attempt_scope(scope_of(server, sink)):
        if asynchronous:
            await planner.a_initiate_chat(coder, message="go", max_turns=2)
        else:
            planner.initiate_chat(coder, message="go", max_turns=2)
    assert outline(sink.spans) == [
        "invoke_workflow planner, coder",
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent planner",
        "> > chat planner",
        "> invoke_agent coder",
        "> > chat coder",
    ]
    assert edges(sink.spans) == [("message", "coder", "planner"), ("message", "planner", "coder")]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_tools_belong_to_who_asked_and_not_to_who_runs_them(serve, asynchronous):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "TERMINATE"
        return {"tool_calls": [{"name": "double", "arguments": {"n": 4}}, {"name": "fail", "arguments": {}}]}

    server, sink, seen = serve(script), ListSink(), []
    coder = AssistantAgent("coder", llm_config=config(server))
    runner = user()

    @runner.register_for_execution()
    @coder.register_for_llm(description="Double.")
    async def double(n: Annotated[int, "a number"]) -> int:
        seen.append(coterie.roles.current_identity())
        return 2 * n

    @runner.register_for_execution()
    @coder.register_for_llm(description="Fail.")
    def fail() -> str:
        raise ValueError("no such file")

    with attempt_scope(scope_of(server, sink)):
        if asynchronous:
            await runner.a_initiate_chat(coder, message="go", max_turns=2)
        else:
            runner.initiate_chat(coder, message="go", max_turns=2)

    assert sorted(outline(sink.spans)) == sorted(
        [
            "invoke_workflow user, coder",
            "> invoke_agent coder",
            "> > chat coder",
            "> > execute_tool double coder",
            "> > execute_tool fail coder",
            "> invoke_agent coder",
            "> > chat coder",
        ]
    )
    calls = sorted(build_episode("t", "a", "r", sink.spans, ()).tool_calls, key=lambda call: call.name)
    assert [(call.name, call.arguments, call.result, bool(call.error)) for call in calls] == [
        ("double", '{"n": 4}', "8", False),
        ("fail", "{}", "Error: no such file", True),
    ]
    assert all(call.call_id for call in calls)
    assert [identity.agent for identity in seen] == ["coder"]


async def test_a_group_chat_and_its_manager(serve):
    order = iter(["coder", "tester"])

    def script(body: dict[str, Any]) -> Any:
        first = system_text(body)
        return first if first in ("coder", "tester") else next(order)

    server, sink = serve(script), ListSink()
    group = GroupChat([agent(server, "coder"), agent(server, "tester")], max_round=3)
    manager = GroupChatManager(group, name="chief", llm_config=config(server))
    with attempt_scope(scope_of(server, sink)):
        user().initiate_chat(manager, message="go", max_turns=1)
    assert outline(sink.spans) == [
        "invoke_workflow chief",
        "> invoke_agent chief",
        "> > chat chief",
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent chief",
        "> > chat chief",
        "> invoke_agent tester",
        "> > chat tester",
    ]
    assert edges(sink.spans) == [("message", "coder", "chief"), ("message", "coder", "tester")]


async def test_hand_offs_of_a_group(serve):
    def script(body: dict[str, Any]) -> Any:
        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        return {"tool_calls": [{"name": tools[0], "arguments": {}}]} if tools else "done"

    server, sink = serve(script), ListSink()
    planner, coder = agent(server, "planner"), agent(server, "coder")
    planner.handoffs.add_llm_condition(
        OnCondition(target=AgentTarget(coder), condition=StringLLMCondition("when there is code to write"))
    )
    pattern = DefaultPattern(initial_agent=planner, agents=[planner, coder])
    with attempt_scope(scope_of(server, sink)):
        initiate_group_chat(pattern, messages="go", max_rounds=4)
    lines = outline(sink.spans)
    assert [line for line in lines if "tool" not in line] == [
        lines[0],
        "> invoke_agent planner",
        "> > chat planner",
        "> invoke_agent coder",
        "> > chat coder",
    ]
    assert edges(sink.spans) == [("handoff", "planner", "coder")]
    (call,) = build_episode("t", "a", "r", sink.spans, ()).tool_calls
    assert (call.agent_path, call.carries) == ("planner", "handoff")


async def test_a_nested_chat_is_a_delegation(serve):
    server, sink = serve(system_text), ListSink()
    writer, critic = agent(server, "writer"), agent(server, "critic")
    writer.register_nested_chats(
        [{"recipient": critic, "message": "look", "max_turns": 1, "summary_method": "last_msg"}],
        trigger=lambda sender: sender.name == "user",
    )
    with attempt_scope(scope_of(server, sink)):
        user().initiate_chat(writer, message="go", max_turns=1)
    paths = [span.attributes[names.AGENT_PATH] for span in sink.of(names.CHAT)]
    assert paths == ["writer/critic"]
    assert edges(sink.spans) == [("delegation", "writer", "critic")]


async def test_an_agent_that_is_asked_in_a_tool_is_a_delegation(serve):
    def script(body: dict[str, Any]) -> Any:
        if not body.get("tools"):
            return "helped"
        return (
            "TERMINATE"
            if body["messages"][-1]["role"] == "tool"
            else {"tool_calls": [{"name": "ask", "arguments": {}}]}
        )

    server, sink = serve(script), ListSink()
    coder, runner, helper = agent(server, "coder"), user(), agent(server, "helper")

    @runner.register_for_execution()
    @coder.register_for_llm(description="Ask.")
    def ask() -> str:
        return str(runner.initiate_chat(helper, message="help", max_turns=1).summary)

    with attempt_scope(scope_of(server, sink)):
        runner.initiate_chat(coder, message="go", max_turns=2)
    assert [span.attributes[names.AGENT_PATH] for span in sink.of(names.CHAT)] == ["coder", "coder/helper", "coder"]
    assert edges(sink.spans) == [("delegation", "coder", "helper")]


async def test_the_thread_of_run_belongs_to_the_attempt(serve):
    server, sink = serve(system_text), ListSink()
    planner, coder = agent(server, "planner"), agent(server, "coder")
    with attempt_scope(scope_of(server, sink)):
        planner.run(coder, message="go", max_turns=1).process()
    assert outline(sink.spans)[1:] == ["> invoke_agent coder", "> > chat coder"]


async def test_the_summary_of_a_chat_and_a_reply_alone(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    coder = agent(server, "coder")
    with attempt_scope(scope_of(server, sink)):
        coder.generate_reply(messages=[{"role": "user", "content": "go"}])
        user().initiate_chat(coder, message="go", max_turns=1, summary_method="reflection_with_llm")
    assert outline(sink.spans) == [
        "invoke_agent coder",
        "> chat coder",
        "invoke_workflow user, coder",
        "> invoke_agent coder",
        "> > chat coder",
        "> chat user",
    ]


async def test_attribution_holds_under_load(serve):
    async def script(body: dict[str, Any]) -> Any:
        await asyncio.sleep(random.random() * 0.02)
        return system_text(body)

    server = serve(script)
    sinks = {team: ListSink() for team in range(16)}

    def members(team: int) -> list[ConversableAgent]:
        return [agent(server, f"{role}{team}") for role in ("planner", "coder")]

    async def play_async(team: int) -> None:
        planner, coder = members(team)
        with attempt_scope(scope_of(server, sinks[team], rollout_id=f"ro-{team}")):
            await planner.a_initiate_chat(coder, message="go", max_turns=2)

    def play(team: int) -> None:
        planner, coder = members(team)
        with attempt_scope(scope_of(server, sinks[team], rollout_id=f"ro-{team}")):
            planner.initiate_chat(coder, message="go", max_turns=2)

    threads = [asyncio.to_thread(play, team) for team in range(10, 16)]
    await asyncio.wait_for(asyncio.gather(*[play_async(team) for team in range(10)], *threads), 60)
    for team, sink in sinks.items():
        turns = build_episode("t", "a", "r", sink.spans, ()).turns
        assert [turn.agent for turn in turns] == [f"coder{team}", f"planner{team}", f"coder{team}"]
        for turn in turns:
            assert turn.text == turn.agent
            assert turn.trainable
    assert len(server.requests) == 16 * 3


class Mine(ConversableAgent):
    """An agent whose methods call those that they override."""

    def initiate_chat(self, *args: Any, **kwargs: Any) -> Any:
        return super().initiate_chat(*args, **kwargs)

    def generate_reply(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate_reply(*args, **kwargs)

    def execute_function(self, *args: Any, **kwargs: Any) -> Any:
        return super().execute_function(*args, **kwargs)


async def test_methods_of_ones_own_and_a_registered_agent(serve):
    def script(body: dict[str, Any]) -> Any:
        return "TERMINATE" if len(body["messages"]) > 2 else {"tool_calls": [{"name": "look", "arguments": {}}]}

    server, sink = serve(script), ListSink()
    coterie_autogen.AutoGenInstrumentor().uninstrument()
    coder = coterie_autogen.register(agent(server, "coder"))
    runner, other = Mine("runner", human_input_mode="NEVER"), agent(server, "other")

    @runner.register_for_execution()
    @coder.register_for_llm(description="Look.")
    def look() -> str:
        return "seen"

    with attempt_scope(scope_of(server, sink)):
        runner.initiate_chat(coder, message="go", max_turns=2)
        agents = len(sink.of(names.INVOKE_AGENT))
        runner.initiate_chat(other, message="go", max_turns=1)
    coterie_autogen.unregister(coder)
    assert outline(sink.spans)[:5] == [
        "invoke_workflow runner, coder",
        "> invoke_agent coder",
        "> > chat coder",
        "> > execute_tool look coder",
        "> invoke_agent coder",
    ]
    assert len(sink.of(names.INVOKE_AGENT)) == agents == 2
    assert len(sink.of(names.EXECUTE_TOOL)) == 1


class OwnModel:
    """A model client of the user's own."""

    def __init__(self, config: Any, **_: Any) -> None: ...
    def create(self, params: Any) -> Any:
        message = SimpleNamespace(content="from my model", tool_calls=None, function_call=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], model="mine", cost=0)

    def message_retrieval(self, response: Any) -> list[str]:
        return [choice.message.content for choice in response.choices]

    def cost(self, response: Any) -> float:
        return 0

    @staticmethod
    def get_usage(response: Any) -> dict[str, Any]:
        return {}


async def test_a_model_that_capture_cannot_see_is_told():
    sink = ListSink()
    entry: Any = {"model": "mine", "model_client_cls": "OwnModel"}
    coder = ConversableAgent("coder", llm_config={"config_list": [entry]}, human_input_mode="NEVER")
    coder.register_model_client(model_client_cls=OwnModel)
    with attempt_scope(scope_for_test(sink)):
        assert coder.generate_reply(messages=[{"role": "user", "content": "go"}]) == "from my model"
    (chat,) = sink.of(names.CHAT)
    assert json.loads(chat.attributes[names.OUTPUT_MESSAGES]) == [{"role": "assistant", "content": "from my model"}]
    assert chat.attributes[names.AGENT_NAME] == "coder"


@pytest.fixture
def own_recording() -> Iterator[None]:
    coterie.uninstrument()
    yield
    coterie.uninstrument()


def test_uninstrument_restores_everything(own_recording, serve):
    before = (dict(vars(ConversableAgent)), conversable_agent.threading, conversable_agent.functools)
    coterie.instrument()
    assert vars(ConversableAgent)["generate_reply"] is not before[0]["generate_reply"]
    coterie.uninstrument()
    assert (dict(vars(ConversableAgent)), conversable_agent.threading, conversable_agent.functools) == before
    assert conversable_agent.threading is threading


def test_errors_reach_the_caller_as_ever(serve):
    server, sink = serve(lambda body: 400), ListSink()
    with attempt_scope(scope_of(server, sink)), pytest.raises(Exception, match="400") as caught:
        user().initiate_chat(agent(server, "coder"), message="go", max_turns=1)
    assert type(caught.value).__name__ == "BadRequestError"
    assert {span.status.value for span in sink.spans} == {"error"}
    assert len(sink.of(names.CHAT)) == 1
