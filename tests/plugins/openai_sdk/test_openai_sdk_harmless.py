"""The user's program behaves as it would without us: hooks, errors, processors, faults of ours, switching off."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import agents
import pytest
from agents import AgentHooks, RunHooks, Runner, function_tool
from agents.run import AgentRunner
from agents.util import _error_tracing
from opentelemetry.instrumentation.utils import suppress_instrumentation
from reading_spans import scope_of
from sdk_teams import agent, call, model_at, outline, results, run, who

import coterie
from coterie import roles
from coterie.capture import faults
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test
from coterie_openai_sdk import CoterieTraceProcessor, OpenAIAgentsInstrumentor, wrapping

SOLO = ["invoke_workflow Agent workflow", "> invoke_agent solo", "> > chat solo"]


@pytest.fixture
def switched_on():
    instrumentor = OpenAIAgentsInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture
def solo(serve):
    return agent("solo", model_at(serve(lambda body: "hi")))


async def recorded(one: Any, **settings: Any) -> list[str]:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        assert (await run(one, **settings)).final_output == "hi"
    return outline(sink.spans)


def test_found_by_entry_point():
    (found,) = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "coterie_openai_sdk"]
    assert found.load() is OpenAIAgentsInstrumentor


def test_importing_the_plugin_imports_no_framework():
    code = (
        "import sys, coterie_openai_sdk; coterie_openai_sdk.OpenAIAgentsInstrumentor; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('agents', 'openai')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def _python(code: str, **settings: Any) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_recording_waits_for_the_import_of_the_sdk():
    """Importing it takes seconds: a program that does not use it does not pay for it."""
    code = (
        "import sys; from coterie_openai_sdk import OpenAIAgentsInstrumentor as I; "
        "I().instrument(); early = 'agents' in sys.modules; "
        "from agents.run import AgentRunner as A; on = hasattr(A.run, 'off'); "
        "I().uninstrument(); print(early, on, hasattr(A.run, 'off')); "
        "I().instrument(); print(hasattr(A.run, 'off'))"
    )
    assert _python(code) == "False True False\nTrue"


def test_an_import_after_switching_off_stays_as_it_is():
    code = (
        "from coterie_openai_sdk import OpenAIAgentsInstrumentor as I; I().instrument(); I().uninstrument(); "
        "from agents.run import AgentRunner as A; print(hasattr(A.run, 'off'))"
    )
    assert _python(code) == "False"


def test_a_folder_of_the_users_own_that_is_called_agents(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "run.py").write_text("here = 1\n")
    code = (
        "from coterie_openai_sdk import OpenAIAgentsInstrumentor as I; I().instrument(); "
        "import sys; sys.path.insert(0, '.'); sys.path[:] = sys.path[:1]; "
        "import agents.run; print(agents.run.here); I().uninstrument()"
    )
    (tmp_path / "agents" / "__init__.py").write_text("")
    assert _python(code, cwd=tmp_path) == "1"


async def test_uninstrument_restores_everything(solo):
    before = (AgentRunner.run, AgentRunner.run_streamed, _error_tracing.attach_error_to_current_span)
    sources = list(roles._acting_sources)
    instrumentor = OpenAIAgentsInstrumentor()
    instrumentor.instrument()
    assert AgentRunner.run is not before[0]
    instrumentor.uninstrument()
    assert (AgentRunner.run, AgentRunner.run_streamed, _error_tracing.attach_error_to_current_span) == before
    assert roles._acting_sources == sources
    assert await recorded(solo) == []


async def test_uninstrument_beneath_anothers_wrapper(solo, switched_on, monkeypatch):
    ours = AgentRunner.run

    async def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await ours(self, *args, **kwargs)

    monkeypatch.setattr(AgentRunner, "run", theirs)
    assert await recorded(solo) == SOLO
    switched_on.uninstrument()
    assert AgentRunner.run is theirs
    assert await recorded(solo) == []
    switched_on.instrument()
    assert await recorded(solo) == SOLO


async def test_uninstrument_during_a_run_records_it_to_its_end_and_nothing_new(serve, switched_on):
    server = serve(lambda body: "hi" if results(body) else call("off"))

    @function_tool
    def off() -> str:
        """Switch off."""
        switched_on.uninstrument()
        return "off"

    one = agent("solo", model_at(server), tools=[off])
    assert await recorded(one) == [*SOLO, "> > execute_tool off solo", "> > chat solo"]
    assert await recorded(agent("solo", model_at(serve(lambda body: "hi")))) == []


async def test_instrumenting_twice_records_once(solo, switched_on):
    OpenAIAgentsInstrumentor().instrument()
    switched_on.instrument()
    assert await recorded(solo) == SOLO
    switched_on.uninstrument()
    assert await recorded(solo) == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_processor_alone(solo, streamed):
    agents.add_trace_processor(CoterieTraceProcessor())
    assert await recorded(solo, streamed=streamed) == SOLO
    agents.set_tracing_disabled(True)
    assert await recorded(solo, streamed=streamed) == SOLO
    agents.set_trace_processors([])
    gc.collect()
    assert await recorded(solo) == []


async def test_processors_beside_the_instrumentor_and_each_other(solo, switched_on):
    first, second = CoterieTraceProcessor(), CoterieTraceProcessor()
    agents.add_trace_processor(first)
    agents.add_trace_processor(second)
    assert await recorded(solo) == SOLO
    switched_on.uninstrument()
    first.shutdown()
    assert await recorded(solo) == SOLO
    second.shutdown()
    second.shutdown()
    assert await recorded(solo) == []
    assert not wrapping._wrapped


async def test_processors_of_others_stay_and_may_throw_all_others_out(solo, switched_on):
    class Theirs(CoterieTraceProcessor):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_span_start(self, span: Any) -> None:
            self.seen.append(span.span_data.type)

    theirs = Theirs()
    agents.set_trace_processors([theirs])
    assert await recorded(solo) == SOLO
    assert "agent" in theirs.seen


class Noting(RunHooks[Any]):
    """The user's hooks on runs."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self.said.append(f"start {agent.name}")

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        self.said.append(f"end {agent.name} {output}")

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
        self.said.append(f"{from_agent.name} to {to_agent.name}")

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        self.said.append(f"tool {tool.name} by {roles.current_identity()}")

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        self.said.append(f"tool {tool.name} gave {result}")

    async def on_llm_start(self, context: Any, agent: Any, system_prompt: Any, input_items: Any) -> None:
        self.said.append(f"asks {system_prompt}")

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        self.said.append(f"answered {agent.name}")


class NotingAgent(AgentHooks[Any]):
    """The user's hooks on one agent."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def on_start(self, context: Any, agent: Any) -> None:
        self.said.append("start")

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        self.said.append("tool")

    async def on_handoff(self, context: Any, agent: Any, source: Any) -> None:
        self.said.append(f"from {source.name}")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_users_hooks_hear_the_same(serve, streamed):
    def script(body: dict[str, Any]) -> Any:
        if who(body) == "last":
            return "hi"
        return call("look") if not results(body) else call("transfer_to_last")

    @function_tool
    def look() -> str:
        """Look."""
        return "seen"

    model = model_at(serve(script))
    heard = []
    for switch in (lambda: None, OpenAIAgentsInstrumentor().instrument):
        switch()
        hooks, own = Noting(), NotingAgent()
        last = agent("last", model, hooks=own)
        await run(agent("first", model, tools=[look], handoffs=[last]), hooks=hooks, streamed=streamed)
        heard.append([line.partition(" by ")[0] for line in hooks.said] + own.said)
    OpenAIAgentsInstrumentor().uninstrument()
    assert heard[0] == heard[1]
    assert "first to last" in heard[0]
    assert "start" in heard[0]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_an_exception_of_the_users_hooks_comes_out(solo, switched_on, streamed):
    fault = KeyError("the user's own")

    class Broken(RunHooks[Any]):
        async def on_llm_start(self, *_: Any) -> None:
            raise fault

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(KeyError) as caught:
        await run(solo, hooks=Broken(), streamed=streamed)
    assert caught.value is fault
    assert {span.attributes.get("error.type") for span in sink.spans} == {"KeyError"}


async def test_wrong_hooks_get_the_sdks_own_complaint(solo, switched_on):
    with pytest.raises(TypeError, match="RunHooks"):
        await Runner.run(solo, "go", hooks=NotingAgent())


async def test_a_runner_of_the_users_own(solo, switched_on):
    class Own(AgentRunner):
        async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:  # noqa: A002
            return await super().run(starting_agent, input, **kwargs)

    former = agents.run.get_default_agent_runner()
    agents.run.set_default_agent_runner(Own())
    try:
        assert await recorded(solo) == SOLO
    finally:
        agents.run.set_default_agent_runner(former)


async def test_suppressed_instrumentation(solo, switched_on):
    with suppress_instrumentation():
        assert await recorded(solo) == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "broken",
    [
        "coterie_openai_sdk.wrapping.start_run",
        "coterie_openai_sdk.runs.Run.agent_starts",
        "coterie_openai_sdk.runs.Run.acts",
        "coterie_openai_sdk.runs.Run.hands_over",
        "coterie_openai_sdk.runs.Run.start_tool",
        "coterie_openai_sdk.runs.Run.end_tool",
        "coterie_openai_sdk.uncaptured.told_call",
        "coterie_openai_sdk.uncaptured.record_answer",
        "coterie_openai_sdk.hosted.record_hosted_tools",
        "coterie.structure.end",
        "coterie.structure.start_workflow",
    ],
)
async def test_a_fault_of_ours_is_logged_and_not_the_users(serve, monkeypatch, caplog, broken, streamed):
    def script(body: dict[str, Any]) -> Any:
        if who(body) == "last":
            return "hi"
        return call("look") if not results(body) else call("transfer_to_last")

    @function_tool
    def look() -> str:
        """Look."""
        return "seen"

    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    model = model_at(serve(script))
    first = agent("first", model, tools=[look], handoffs=[agent("last", model)])
    coterie.instrument()
    try:
        monkeypatch.setattr(faults, "_noted", set())
        monkeypatch.setattr(broken, fault)
        with attempt_scope(scope_for_test(ListSink())):
            for _ in range(2):
                assert (await run(first, streamed=streamed)).final_output == "hi"
    finally:
        monkeypatch.undo()
        coterie.uninstrument()
    said = [record.getMessage() for record in caplog.records if "logged once" in record.getMessage()]
    assert said
    assert len(set(said)) == len(said)


async def test_a_background_task_of_a_tool_outlives_its_run(serve):
    """What it does afterwards is still that agent's."""
    server = serve(lambda body: call("later") if who(body) == "solo" and not results(body) else "hi")
    model = model_at(server)
    left: list[asyncio.Task[Any]] = []

    @function_tool
    async def later() -> str:
        """Go on later."""

        async def work() -> None:
            await asyncio.sleep(0.2)
            await Runner.run(agent("ghost", model), "go")

        left.append(asyncio.create_task(work()))
        return "later"

    coterie.instrument()
    try:
        sink = ListSink()
        with attempt_scope(scope_of(server, sink)):
            await run(agent("solo", model, tools=[later]))
            await left[0]
    finally:
        coterie.uninstrument()
    assert "> > > invoke_agent solo/ghost" in outline(sink.spans)
