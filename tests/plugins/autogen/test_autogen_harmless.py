"""The user's program behaves as it would without us: errors, other exporters, faults of ours, switching off."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

import autogen_core.tools
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import ChatAgent
from autogen_agentchat.teams import BaseGroupChat, RoundRobinGroupChat
from autogen_agentchat.tools import AgentTool
from autogen_core import CancellationToken, RoutedAgent
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient
from autogen_spans import MODEL_INFO, episode, model_client
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from reading_spans import outline, scope_of

import coterie
from coterie import conventions as names
from coterie import spans
from coterie.capture import faults
from coterie.scope import attempt_scope
from coterie.testing import Fault, ListSink, Reply, scope_for_test
from coterie_autogen import AutoGenInstrumentor, register, registering, unregister
from coterie_autogen.runs import team_runs

TEAM_OF_ONE = ["invoke_workflow RoundRobinGroupChat", "> invoke_agent coder", "> > chat coder"]


@pytest.fixture
def switched_on():
    instrumentor = AutoGenInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def coder(answers: Any = ("hi",), **settings: Any) -> AssistantAgent:
    return AssistantAgent("coder", ReplayChatCompletionClient(list(answers), model_info=MODEL_INFO), **settings)


def team_of(*agents: Any) -> RoundRobinGroupChat:
    return RoundRobinGroupChat(list(agents), max_turns=len(agents))


async def recorded(run: Any) -> list[str]:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        await run.run(task="go")
    return outline(sink.spans)


def functions() -> list[Any]:
    """Every function of the classes that are wrapped."""
    roots = (RoutedAgent, ChatCompletionClient, autogen_core.tools.BaseTool, autogen_core.tools.Workbench, ChatAgent)
    classes = [BaseGroupChat, *roots]
    for root in classes:
        classes += [one for one in root.__subclasses__() if one not in classes]
    return [
        (one, name, value) for one in classes for name, value in vars(one).items() if callable(value) or "_tool" in name
    ]


def test_found_by_entry_point():
    (found,) = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "coterie_autogen"]
    assert found.load() is AutoGenInstrumentor
    assert [text.split()[0] for text in AutoGenInstrumentor().instrumentation_dependencies()] == ["autogen-core"]


def test_importing_the_plugin_imports_no_framework():
    code = (
        "import sys, coterie_autogen as c; c.AutoGenInstrumentor, c.register; "
        "print([name for name in sys.modules if name.partition('.')[0] in "
        "('autogen', 'autogen_core', 'autogen_agentchat', 'autogen_ext', 'openai')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


async def test_uninstrument_restores_everything():
    before = functions()
    instrumentor = AutoGenInstrumentor()
    instrumentor.instrument()
    assert functions() != before

    class Mine(BaseChatAgent):
        async def on_messages(self, *_: Any) -> Any: ...

    wrapped = Mine.__dict__["on_messages"]
    instrumentor.uninstrument()
    after = functions()
    assert [one for one in before if one not in after] == []
    assert Mine.__dict__["on_messages"] is wrapped.__wrapped__
    assert "__init_subclass__" not in ChatAgent.__dict__
    assert not spans._told_by_plugins
    assert await recorded(team_of(coder())) == []


async def test_instrumenting_twice_records_once(switched_on):
    switched_on.instrument()
    AutoGenInstrumentor().instrument()
    assert await recorded(team_of(coder())) == TEAM_OF_ONE
    switched_on.uninstrument()
    assert await recorded(team_of(coder())) == []


async def test_a_registered_team_is_recorded_and_no_other():
    before = functions()
    team, agent, other = team_of(coder()), coder(), coder()
    assert register(team) is team
    register(agent)
    assert await recorded(team) == TEAM_OF_ONE
    assert await recorded(agent) == ["invoke_agent coder", "> chat coder"]
    assert await recorded(other) == []
    assert await recorded(team_of(coder())) == []
    unregister(team)
    unregister(agent)
    assert functions() == before


async def test_a_registered_team_stays_so_when_the_whole_is_switched_off(switched_on):
    team = register(RoundRobinGroupChat([coder(["a", "b"])], max_turns=1))
    assert await recorded(team) == TEAM_OF_ONE
    switched_on.uninstrument()
    assert await recorded(team) == TEAM_OF_ONE
    unregister(team)
    assert not registering._wrappers


async def test_errors_of_a_tool_reach_the_caller_as_ever(switched_on):
    fault = KeyError("the user's own")

    def fail() -> str:
        raise fault

    tool, sink = autogen_core.tools.FunctionTool(fail, "Fails."), ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(KeyError) as caught:
        await tool.run_json({}, CancellationToken())
    assert caught.value is fault
    assert sink.spans[0].attributes[names.ERROR_TYPE] == "KeyError"


class Broken(ReplayChatCompletionClient):
    """A client that always fails."""

    fault = OSError("the model is gone")

    async def create(self, *_: Any, **__: Any) -> Any:
        raise self.fault


async def test_errors_of_a_model_reach_the_caller_as_ever(switched_on):
    sink, client = ListSink(), Broken([])
    with attempt_scope(scope_for_test(sink)):
        with pytest.raises(OSError, match="the model is gone") as alone:
            await AssistantAgent("coder", client).run(task="go")
        with pytest.raises(RuntimeError, match="OSError: the model is gone"):
            await team_of(AssistantAgent("coder", client)).run(task="go")
    assert alone.value is Broken.fault
    assert {span.status.value for span in sink.spans} == {"error"}
    errors = [(span.name, span.attributes[names.ERROR_TYPE]) for span in sink.spans]
    assert errors == [
        ("chat", "OSError"),
        ("invoke_agent coder", "OSError"),
        ("chat", "OSError"),
        ("invoke_agent coder", "OSError"),
        ("invoke_workflow RoundRobinGroupChat", "RuntimeError"),
    ]
    assert not team_runs


@pytest.mark.parametrize("how", ["task", "token"])
async def test_a_cancelled_run_leaves_nothing_open(serve, how):
    coterie.instrument()
    try:
        server, sink, token = serve(lambda body: Reply(fault=Fault.HANG)), ListSink(), CancellationToken()
        team = team_of(AssistantAgent("coder", model_client(server)))
        with attempt_scope(scope_of(server, sink)):
            running = asyncio.create_task(team.run(task="go", cancellation_token=token))
            for _ in range(200):
                if server.requests:
                    break
                await asyncio.sleep(0.01)
            token.cancel() if how == "token" else running.cancel()
            if how == "task":
                token.cancel()  # AutoGen waits for its runtime to be idle, which it is not while the model hangs.
            with pytest.raises((asyncio.CancelledError, RuntimeError)):
                await asyncio.wait_for(running, 10)
    finally:
        coterie.uninstrument()
    assert not team_runs
    assert sorted(span.name for span in sink.spans) == [
        "chat scripted",
        "invoke_agent coder",
        "invoke_workflow RoundRobinGroupChat",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "coterie_autogen.identity.start_workflow",
        "coterie_autogen.runs.start_agent",
        "coterie_autogen.runs.end",
        "coterie_autogen.identity.heard_by",
        "coterie_autogen.tools.start_tool",
        "coterie_autogen.tools.copy_context",
        "coterie_autogen.models.ToldCall",
        "coterie_autogen.models.record_told_answer",
        "coterie_autogen.runs.end_tool",
    ],
)
async def test_a_fault_of_ours_is_logged_and_not_the_users(switched_on, monkeypatch, caplog, broken):
    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    def look() -> str:
        """Look."""
        return "seen"

    monkeypatch.setattr(faults, "_noted", set())
    monkeypatch.setattr(broken, fault)
    from autogen_core import FunctionCall
    from autogen_core.models import CreateResult, RequestUsage

    usage = RequestUsage(prompt_tokens=1, completion_tokens=1)
    asked = [FunctionCall(id="c", name="look", arguments="{}")]
    wish = CreateResult(finish_reason="function_calls", content=asked, usage=usage, cached=False)
    for _ in range(2):
        result = await team_of(coder([wish]), coder_named("tester")).run(task="go")
        assert [message.to_text() for message in result.messages][-1] == "hi"
        result = await coder([wish], tools=[look]).run(task="go")
        assert result.messages[-1].to_text() == "seen"
    said = [record.getMessage() for record in caplog.records if record.name == "coterie"]
    assert said
    assert len(set(said)) == len(said)


def coder_named(name: str) -> AssistantAgent:
    return AssistantAgent(name, ReplayChatCompletionClient(["hi"], model_info=MODEL_INFO))


async def test_suppressed_instrumentation_records_nothing(switched_on):
    with suppress_instrumentation():
        assert await recorded(team_of(coder())) == []
        assert await recorded(coder()) == []


@pytest.fixture
def users_exporter(monkeypatch):
    """A provider and an exporter of the user's own, for one test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


async def test_autogens_own_spans_stay_the_exporters_and_double_nothing(serve, users_exporter):
    def script(body: dict[str, Any]) -> Any:
        if not body.get("tools"):
            return "done"
        return {"tool_calls": [{"name": "helper", "arguments": {"task": "help"}}]}

    server, sink = serve(script), ListSink()
    coterie.instrument()
    try:
        helper = AssistantAgent("helper", model_client(server))
        agent = AssistantAgent("coder", model_client(server), tools=[AgentTool(helper)])
        with attempt_scope(scope_of(server, sink)), trace.get_tracer("user").start_as_current_span("request"):
            await team_of(agent).run(task="go")
    finally:
        coterie.uninstrument()

    theirs = users_exporter.get_finished_spans()
    ours = {span.span_id for span in sink.spans}
    from_autogen = [span for span in theirs if span.instrumentation_scope.name == "autogen-core"]
    assert {"invoke_agent coder", "execute_tool helper"} <= {span.name for span in from_autogen}
    assert not ours & {f"{span.context.span_id:016x}" for span in from_autogen}
    assert len({span.context.trace_id for span in theirs if f"{span.context.span_id:016x}" in ours}) == 1
    found = episode(sink.spans)
    assert [turn.agent_path for turn in found.turns] == ["coder", "coder/helper"]
    assert [call.name for call in found.tool_calls] == ["helper"]
    assert [(edge.source, edge.target) for edge in found.edges] == [("coder", "helper")]


async def test_content_rules_hold_for_what_the_plugin_records():
    def look(word: str) -> str:
        """Look."""
        raise ValueError("secret result")

    sink = ListSink()
    coterie.instrument(mask=lambda text: text.replace("secret", "***"))
    try:
        with attempt_scope(scope_for_test(sink)):
            tool = autogen_core.tools.FunctionTool(look, "Look.")
            with pytest.raises(ValueError, match="secret"):
                await tool.run_json({"word": "secret"}, CancellationToken())
            await coder(["a secret"]).run(task="tell the secret")
    finally:
        coterie.uninstrument()
    assert "***" in str(sink.spans)
    assert "secret" not in str(sink.spans)


async def test_agents_and_teams_are_not_kept_alive(switched_on):
    import weakref

    team = register(team_of(coder()))
    gone = weakref.ref(team)
    await recorded(team)
    del team
    gc.collect()
    assert gone() is None
