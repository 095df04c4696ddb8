"""Teams of AutoGen as users write them: who acts, under whom, and which edges there are."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, MessageFilterAgent, SocietyOfMindAgent
from autogen_agentchat.agents._message_filter_agent import MessageFilterConfig, PerSourceFilter
from autogen_agentchat.base import Response
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import (
    DiGraphBuilder,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import CancellationToken, SingleThreadedAgentRuntime
from autogen_spans import edges, episode, model_client, paths
from reading_spans import last_text, outline, scope_of, system_text

from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink

pytestmark = pytest.mark.usefixtures("recording")


def agent(server: Any, name: str, **settings: Any) -> AssistantAgent:
    """An agent whose system message is its name."""
    return AssistantAgent(name, model_client(server), system_message=name, description=name, **settings)


async def recorded(server: Any, team: Any) -> ListSink:
    """What an attempt records in which a team, or an agent alone, runs once."""
    sink = ListSink()
    with attempt_scope(scope_of(server, sink)):
        await team.run(task="go")
    return sink


async def test_round_robin_says_whose_words_reach_whom(serve):
    server = serve(system_text)
    team = RoundRobinGroupChat([agent(server, name) for name in ("planner", "coder", "tester")], max_turns=4)
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow RoundRobinGroupChat",
        "> invoke_agent planner",
        "> > chat planner",
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent tester",
        "> > chat tester",
        "> invoke_agent planner",
        "> > chat planner",
    ]
    assert edges(sink.spans) == [
        ("message", "planner", "coder"),
        ("message", "planner", "tester"),
        ("message", "coder", "tester"),
        ("message", "coder", "planner"),
        ("message", "tester", "planner"),
    ]
    turns = episode(sink.spans).turns
    assert [(turn.role, turn.index, turn.text, turn.trainable) for turn in turns] == [
        ("planner", 0, "planner", True),
        ("coder", 0, "coder", True),
        ("tester", 0, "tester", True),
        ("planner", 1, "planner", True),
    ]


async def test_a_team_that_goes_on_keeps_its_agents(serve):
    server, sink = serve(system_text), ListSink()
    team = RoundRobinGroupChat([agent(server, "planner"), agent(server, "coder")], max_turns=1)
    with attempt_scope(scope_of(server, sink)):
        await team.run(task="go")
        await team.run()
        await team.reset()
        await team.run(task="again")

    assert paths(sink) == ["planner", "coder", "planner"]
    assert edges(sink.spans) == [("message", "planner", "coder")]
    assert len(sink.of(names.INVOKE_WORKFLOW)) == 3


async def test_selector_is_an_agent_beside_the_participants(serve):
    order = iter(["nobody", "coder", "tester"])

    def script(body: dict[str, Any]) -> Any:
        text = json.dumps(body["messages"])
        return (
            next(order) if "select the next role" in text.lower() or "valid" in last_text(body) else system_text(body)
        )

    server = serve(script)
    team = SelectorGroupChat(
        [agent(server, "coder"), agent(server, "tester"), agent(server, "writer")],
        model_client=model_client(server),
        selector_prompt="Select the next role of {participants}. {roles} {history}",
        max_turns=2,
    )
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow SelectorGroupChat",
        "> invoke_agent SelectorGroupChatManager",
        "> > chat SelectorGroupChatManager",
        "> > chat SelectorGroupChatManager",
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent SelectorGroupChatManager",
        "> > chat SelectorGroupChatManager",
        "> invoke_agent tester",
        "> > chat tester",
    ]
    assert edges(sink.spans) == [("message", "coder", "SelectorGroupChatManager"), ("message", "coder", "tester")]
    assert {turn.role for turn in episode(sink.spans).turns} == {"selectorgroupchatmanager", "coder", "tester"}


async def test_selector_function_makes_no_manager(serve):
    server = serve(system_text)
    team = SelectorGroupChat(
        [agent(server, "coder"), agent(server, "tester")],
        model_client=model_client(server),
        selector_func=lambda thread: "tester",
        max_turns=1,
    )
    sink = await recorded(server, team)
    assert outline(sink.spans)[1:] == ["> invoke_agent tester", "> > chat tester"]


async def test_magentic_one(serve):
    done = iter([False, True])

    def script(body: dict[str, Any]) -> Any:
        text = last_text(body)
        if "is_request_satisfied" in text:
            finished = next(done)
            answers = {
                "is_request_satisfied": finished,
                "is_in_loop": False,
                "is_progress_being_made": True,
                "next_speaker": "coder",
                "instruction_or_question": "write it",
            }
            return json.dumps({key: {"reason": "r", "answer": answer} for key, answer in answers.items()})
        return "coder" if system_text(body) == "coder" else "a plan"

    server = serve(script)
    team = MagenticOneGroupChat([agent(server, "coder")], model_client=model_client(server))
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow MagenticOneGroupChat",
        "> invoke_agent MagenticOneOrchestrator",
        *["> > chat MagenticOneOrchestrator"] * 3,
        "> invoke_agent coder",
        "> > chat coder",
        "> invoke_agent MagenticOneOrchestrator",
        *["> > chat MagenticOneOrchestrator"] * 2,
    ]
    assert edges(sink.spans) == [
        ("message", "MagenticOneOrchestrator", "coder"),
        ("message", "coder", "MagenticOneOrchestrator"),
    ]


def swarm_script(body: dict[str, Any]) -> Any:
    if system_text(body) == "planner" and body["messages"][-1]["role"] == "user":
        return {"tool_calls": [{"name": "transfer_to_coder", "arguments": {}}]}
    return "DONE"


async def test_swarm_hands_over_once_and_sends_no_message_beside(serve):
    server = serve(swarm_script)
    team = Swarm(
        [agent(server, "planner", handoffs=["coder"]), agent(server, "coder", handoffs=["planner"])],
        termination_condition=TextMentionTermination("DONE"),
    )
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow Swarm",
        "> invoke_agent planner",
        "> > chat planner",
        "> > execute_tool transfer_to_coder planner",
        "> invoke_agent coder",
        "> > chat coder",
    ]
    assert edges(sink.spans) == [("handoff", "planner", "coder")]
    (call,) = episode(sink.spans).tool_calls
    assert (call.name, call.carries) == ("transfer_to_coder", "handoff")


async def test_agent_and_team_as_tools_are_delegations(serve):
    def script(body: dict[str, Any]) -> Any:
        if system_text(body) != "planner":
            return system_text(body)
        asked = sum(message["role"] == "tool" for message in body["messages"])
        tools = ["coder", "reviewers"]
        return {"tool_calls": [{"name": tools[asked], "arguments": {"task": "do"}}]} if asked < 2 else "done"

    server = serve(script)
    reviewers = RoundRobinGroupChat([agent(server, "critic"), agent(server, "judge")], max_turns=2)
    planner = agent(
        server,
        "planner",
        tools=[AgentTool(agent(server, "coder")), TeamTool(reviewers, "reviewers", "Reviews.")],
        max_tool_iterations=5,
    )
    sink = await recorded(server, planner)

    assert outline(sink.spans) == [
        "invoke_agent planner",
        "> chat planner",
        "> execute_tool coder planner",
        "> > invoke_agent planner/coder",
        "> > > chat planner/coder",
        "> chat planner",
        "> execute_tool reviewers planner",
        "> > invoke_workflow RoundRobinGroupChat planner",
        "> > > invoke_agent planner/critic",
        "> > > > chat planner/critic",
        "> > > invoke_agent planner/judge",
        "> > > > chat planner/judge",
        "> chat planner",
    ]
    assert edges(sink.spans) == [
        ("delegation", "planner", "coder"),
        ("delegation", "planner", "critic"),
        ("delegation", "planner", "judge"),
        ("message", "critic", "judge"),
    ]


async def test_society_of_mind_delegates_to_its_team(serve):
    server = serve(system_text)
    inner = RoundRobinGroupChat([agent(server, "writer"), agent(server, "editor")], max_turns=2)
    society = SocietyOfMindAgent("society", inner, model_client(server))
    team = RoundRobinGroupChat([society, agent(server, "translator")], max_turns=2)
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow RoundRobinGroupChat",
        "> invoke_agent society",
        "> > invoke_workflow RoundRobinGroupChat society",
        "> > > invoke_agent society/writer",
        "> > > > chat society/writer",
        "> > > invoke_agent society/editor",
        "> > > > chat society/editor",
        "> > chat society",
        "> invoke_agent translator",
        "> > chat translator",
    ]
    assert edges(sink.spans) == [
        ("delegation", "society", "writer"),
        ("message", "writer", "editor"),
        ("message", "society", "translator"),
    ]


@pytest.mark.skipif(
    "name" not in inspect.signature(RoundRobinGroupChat).parameters, reason="teams in teams came with AutoGen 0.7"
)
async def test_a_team_in_a_team_adds_no_level(serve):
    server = serve(system_text)
    inner = RoundRobinGroupChat([agent(server, "coder"), agent(server, "tester")], max_turns=2, name="dev")
    team = RoundRobinGroupChat([agent(server, "planner"), inner, agent(server, "writer")], max_turns=3, name="company")
    sink = await recorded(server, team)

    assert outline(sink.spans) == [
        "invoke_workflow company",
        "> invoke_agent planner",
        "> > chat planner",
        "> invoke_workflow dev",
        "> > invoke_agent coder",
        "> > > chat coder",
        "> > invoke_agent tester",
        "> > > chat tester",
        "> invoke_agent writer",
        "> > chat writer",
    ]
    assert edges(sink.spans) == [
        ("message", "planner", "coder"),
        ("message", "planner", "tester"),
        ("message", "coder", "tester"),
        ("message", "planner", "writer"),
        ("message", "coder", "writer"),
        ("message", "tester", "writer"),
    ]


async def test_a_graph_with_agents_side_by_side(serve):
    server = serve(system_text)
    start, left, right, end = (agent(server, name) for name in ("start", "left", "right", "end"))
    builder = DiGraphBuilder()
    for one in (start, left, right, end):
        builder.add_node(one)
    builder.add_edge(start, left).add_edge(start, right).add_edge(left, end).add_edge(right, end)
    flow = GraphFlow([start, left, right, end], graph=builder.build(), termination_condition=MaxMessageTermination(20))
    sink = await recorded(server, flow)

    assert sorted(paths(sink)) == ["end", "left", "right", "start"]
    for chat in sink.of(names.CHAT):
        assert json.loads(chat.attributes[names.INPUT_MESSAGES])[0]["content"] == chat.attributes[names.AGENT_NAME]
    found = edges(sink.spans)
    assert {edge for edge in found if edge[2] == "end"} == {
        ("message", one, "end") for one in ("start", "left", "right")
    }


@pytest.mark.parametrize("way", ["run", "run_stream", "on_messages", "on_messages_stream"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_agent_alone(serve, way, streamed):
    server, sink = serve(system_text), ListSink()
    alone = agent(server, "coder", model_client_stream=streamed)
    said = [TextMessage(content="go", source="user")]
    with attempt_scope(scope_of(server, sink)):
        match way:
            case "run":
                await alone.run(task="go")
            case "run_stream":
                assert [item async for item in alone.run_stream(task="go")]
            case "on_messages":
                await alone.on_messages(said, CancellationToken())
            case _:
                assert [item async for item in alone.on_messages_stream(said, CancellationToken())]

    assert outline(sink.spans) == ["invoke_agent coder", "> chat coder"]
    assert episode(sink.spans).turns[0].trainable


class Echo(BaseChatAgent):
    """An agent of the user's own, defined after recording began, that asks another agent."""

    def __init__(self, name: str, helper: AssistantAgent) -> None:
        super().__init__(name, "echoes")
        self.helper = helper

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (TextMessage,)

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        response = await self.helper.on_messages(messages, cancellation_token)
        text = response.chat_message.to_text()
        return Response(chat_message=TextMessage(content=text, source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        pass


@pytest.mark.parametrize("in_team", [False, True])
async def test_an_agent_of_ones_own_that_asks_another(serve, in_team):
    server, sink = serve(system_text), ListSink()
    echo = Echo("echo", agent(server, "helper"))
    with attempt_scope(scope_of(server, sink)):
        if in_team:
            await RoundRobinGroupChat([echo], max_turns=1).run(task="go")
        else:
            await echo.on_messages([TextMessage(content="go", source="user")], CancellationToken())

    shown = ["invoke_agent echo", "> invoke_agent echo/helper", "> > chat echo/helper"]
    assert outline(sink.spans)[-3:] == [f"> {line}" if in_team else line for line in shown]
    assert edges(sink.spans) == [("delegation", "echo", "helper")]


async def test_a_filter_in_front_of_an_agent_is_that_agent(serve):
    server = serve(system_text)
    coder = agent(server, "coder")
    only_user = MessageFilterConfig(per_source=[PerSourceFilter(source="user", position="first", count=1)])
    team = RoundRobinGroupChat(
        [agent(server, "planner"), MessageFilterAgent("filtered", coder, only_user), agent(server, "tester")],
        max_turns=3,
    )
    sink = await recorded(server, team)
    assert paths(sink) == ["planner", "coder", "tester"]
    assert ("message", "coder", "tester") in edges(sink.spans)


async def test_a_runtime_that_was_started_elsewhere(serve):
    server, sink = serve(system_text), ListSink()
    runtime = SingleThreadedAgentRuntime(ignore_unhandled_exceptions=False)
    runtime.start()
    team = RoundRobinGroupChat([agent(server, "planner"), agent(server, "coder")], max_turns=2, runtime=runtime)
    try:
        with attempt_scope(scope_of(server, sink)):
            await team.run(task="go")
    finally:
        await runtime.stop()
    assert outline(sink.spans) == [
        "invoke_workflow RoundRobinGroupChat",
        "> invoke_agent planner",
        "> > chat planner",
        "> invoke_agent coder",
        "> > chat coder",
    ]
    assert episode(sink.spans).turns[0].trainable


async def test_inside_an_agent_of_coteries(serve):
    import coterie

    server, sink = serve(system_text), ListSink()
    team = RoundRobinGroupChat([agent(server, "coder")], max_turns=1)
    with attempt_scope(scope_of(server, sink)), coterie.agent("manager"):
        await team.run(task="go")
        await agent(server, "tester").run(task="go")
    assert paths(sink) == ["manager/coder", "manager/tester"]


async def test_a_reader_of_a_stream_is_not_the_agent(serve):
    from coterie.announced import announced_call
    from coterie.roles import current_identity

    server, sink = serve(system_text), ListSink()
    team = RoundRobinGroupChat([agent(server, "coder", model_client_stream=True)], max_turns=1)
    seen = []

    async def read(stream: AsyncGenerator[Any, None]) -> None:
        seen.extend([(current_identity(), announced_call()) async for _ in stream])

    with attempt_scope(scope_of(server, sink)):
        await read(team.run_stream(task="go"))
        await read(agent(server, "coder", model_client_stream=True).run_stream(task="go"))
    assert len(seen) > 6
    assert set(seen) == {(None, None)}


async def test_a_stream_that_is_left_early_is_recorded_and_closed(serve):
    server, sink = serve(lambda body: "a long answer of many words"), ListSink()
    coder = agent(server, "coder", model_client_stream=True)
    with attempt_scope(scope_of(server, sink)):
        stream = coder.run_stream(task="go")
        async for item in stream:
            if getattr(item, "type", "") == "ModelClientStreamingChunkEvent":
                break
        await stream.aclose()
    for _ in range(100):  # The framework's inner generators are closed by the loop, after they were thrown away.
        if len(sink.spans) < 2:
            gc.collect()
            await asyncio.sleep(0.01)
    assert outline(sink.spans) == ["invoke_agent coder", "> chat coder"]
    assert {span.status.value for span in sink.of(names.INVOKE_AGENT)} == {"unset"}
