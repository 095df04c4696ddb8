"""The user's program behaves as it would without us: errors, other exporters, faults of ours, switching off."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import uuid
from importlib.metadata import entry_points
from typing import Any, TypedDict

import pytest
from chat_models import chat_model
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import context as langchain_hooks
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.pregel._loop import PregelLoop
from langgraph.types import Command, interrupt
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from reading_spans import outline, scope_of

import coterie
from coterie import conventions as names
from coterie import roles
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test
from coterie_langchain import CoterieCallbackHandler, LangChainInstrumentor
from coterie_langchain.runs import Run, RunKind, RunTable, open_runs


class State(TypedDict, total=False):
    """One text."""

    text: str


def graph_of(act: Any, **settings: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("coder", act)
    graph.add_edge(START, "coder")
    return graph.compile(**settings)


def speak(_: State) -> State:
    return {"text": FakeListChatModel(responses=["hi"]).invoke("say").text}


ONE_AGENT = ["invoke_workflow LangGraph", "> invoke_agent coder", "> > chat coder"]


@pytest.fixture
def switched_on():
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def recorded(run: Any) -> list[str]:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        run()
    return outline(sink.spans)


def test_found_by_entry_point():
    (found,) = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "coterie_langchain"]
    assert found.load() is LangChainInstrumentor
    assert tuple(LangChainInstrumentor().instrumentation_dependencies()) == ("langchain-core >= 1.0",)


def test_importing_the_plugin_imports_no_framework():
    code = (
        "import sys, coterie_langchain; coterie_langchain.LangChainInstrumentor; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('langchain_core', 'langgraph', 'openai')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_uninstrument_restores_everything():
    hooks, sources = list(langchain_hooks._configure_hooks), list(roles._acting_sources)
    after_tick = PregelLoop.after_tick
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument()
    assert len(langchain_hooks._configure_hooks) == len(hooks) + 1
    graph_of(speak).invoke({})
    assert PregelLoop.after_tick is not after_tick
    instrumentor.uninstrument()
    assert langchain_hooks._configure_hooks == hooks
    assert roles._acting_sources == sources
    assert PregelLoop.after_tick is after_tick
    assert recorded(lambda: graph_of(speak).invoke({})) == []


def test_who_wraps_our_hook_is_not_unwrapped(switched_on, monkeypatch):
    graph_of(speak).invoke({})
    ours, called = PregelLoop.after_tick, []

    def theirs(self: Any) -> Any:
        called.append(self)
        return ours(self)

    monkeypatch.setattr(PregelLoop, "after_tick", theirs)
    switched_on.uninstrument()
    assert PregelLoop.after_tick is theirs
    graph_of(speak).invoke({})
    assert called
    monkeypatch.setattr(PregelLoop, "after_tick", ours.__wrapped__)


def test_uninstrument_during_a_run_records_it_to_its_end_and_nothing_new(switched_on):
    def act(state: State) -> State:
        switched_on.uninstrument()
        return speak(state)

    assert recorded(lambda: graph_of(act).invoke({})) == ONE_AGENT[:2]
    assert len(open_runs) == 0


def test_instrumenting_twice_records_once(switched_on):
    switched_on.instrument()
    LangChainInstrumentor().instrument()
    assert recorded(lambda: graph_of(speak).invoke({})) == ONE_AGENT
    switched_on.uninstrument()
    assert recorded(lambda: graph_of(speak).invoke({})) == []


def test_handler_by_hand_without_instrumenting():
    config = {"callbacks": [CoterieCallbackHandler()]}
    assert recorded(lambda: graph_of(speak).invoke({}, config=config)) == ONE_AGENT


def test_handler_by_hand_beside_the_instrumentor_records_once(switched_on):
    mine = CoterieCallbackHandler()
    assert recorded(lambda: graph_of(speak).invoke({}, config={"callbacks": [mine]})) == ONE_AGENT

    def act(_: State) -> State:
        model = FakeListChatModel(responses=["hi"], callbacks=[mine])
        return {"text": model.invoke("say", config={"callbacks": [CoterieCallbackHandler()]}).text}

    assert recorded(lambda: graph_of(act).invoke({})) == ONE_AGENT


class StartedSpans(SpanProcessor):
    """Counts the spans that were started, ended or not."""

    count = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.count += 1


def test_two_handlers_by_hand_start_no_span_twice(monkeypatch):
    started, provider = StartedSpans(), TracerProvider()
    provider.add_span_processor(started)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    two = {"callbacks": [CoterieCallbackHandler(), CoterieCallbackHandler()]}
    assert recorded(lambda: graph_of(speak).invoke({}, config=two)) == ONE_AGENT
    assert started.count == len(ONE_AGENT)


def test_the_same_exception_object_comes_out(switched_on):
    fault = KeyError("the user's own")

    def act(_: State) -> State:
        raise fault

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(KeyError) as caught:
        graph_of(act).invoke({})
    assert caught.value is fault
    assert {span.status.value for span in sink.spans} == {"error"}
    assert {span.attributes[names.ERROR_TYPE] for span in sink.spans} == {"KeyError"}


async def test_a_cancelled_run_leaves_nothing_open(switched_on):
    async def act(_: State) -> State:
        await asyncio.sleep(30)
        return {}

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        running = asyncio.create_task(graph_of(act).ainvoke({}))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert len(open_runs) == 0
    assert sorted(span.name for span in sink.spans) == ["invoke_agent coder", "invoke_workflow LangGraph"]


def test_model_errors_are_recorded_and_passed_on(serve, switched_on):
    class Broken(FakeListChatModel):
        def _call(self, *_: Any, **__: Any) -> str:
            raise OSError("the model is gone")

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(OSError, match="the model is gone"):
        Broken(responses=[]).invoke("say")
    (chat,) = sink.of(names.CHAT)
    assert (chat.status.value, chat.attributes[names.ERROR_TYPE]) == ("error", "OSError")


def test_an_interrupt_is_no_error_and_resumes(switched_on):
    def act(_: State) -> State:
        return {"text": interrupt("may I?")}

    graph = graph_of(act, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        graph.invoke({}, config=config)
        assert graph.invoke(Command(resume="yes"), config=config)["text"] == "yes"
    assert {span.status.value for span in sink.spans} == {"unset"}
    assert len(sink.of(names.INVOKE_AGENT)) == 2


@pytest.mark.parametrize(
    "broken",
    [
        "handler._start_workflow",
        "handler._start_node",
        "handler.start_agent",
        "handler._end",
        "handler.speaker_in",
        "handler.write_moves",
        "supersteps.follow_superstep",
    ],
)
def test_a_fault_of_ours_is_logged_and_not_the_users(switched_on, monkeypatch, caplog, broken):
    from coterie.capture import faults

    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    monkeypatch.setattr(faults, "_noted", set())
    monkeypatch.setattr(f"coterie_langchain.{broken}", fault)
    assert graph_of(speak).invoke({}) == {"text": "hi"}
    assert graph_of(speak).invoke({}) == {"text": "hi"}
    said = [record for record in caplog.records if "logged once" in record.getMessage()]
    assert said
    assert len({record.getMessage() for record in said}) == len(said)


def test_an_identity_source_that_fails_is_not_the_users(switched_on, monkeypatch):
    monkeypatch.setattr("coterie_langchain.identity.open_runs", None)
    assert roles.current_identity() is None
    assert graph_of(lambda _: {"text": str(roles.current_identity())}).invoke({}) == {"text": "None"}


def test_suppressed_tracing_records_nothing(serve):
    coterie.instrument()
    try:
        server, sink = serve(lambda body: "hi"), ListSink()
        model = chat_model(server)
        graph = graph_of(lambda _: {"text": model.invoke("say").text})
        with attempt_scope(scope_of(server, sink)), suppress_instrumentation():
            assert graph.invoke({}) == {"text": "hi"}
        assert [span.name for span in sink.spans if not span.name.startswith("chat")] == []
        assert len(open_runs) == 0
    finally:
        coterie.uninstrument()


@pytest.fixture
def users_exporter(monkeypatch):
    """A provider and an exporter of the user's own, for one test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_spans_go_to_the_users_exporter_too_under_the_users_span(switched_on, users_exporter):
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), trace.get_tracer("user").start_as_current_span("request") as outer:
        graph_of(speak).invoke({})

    theirs = {span.name: span for span in users_exporter.get_finished_spans()}
    assert set(theirs) == {"request", "invoke_workflow LangGraph", "invoke_agent coder", "chat"}
    above = theirs["invoke_workflow LangGraph"].parent
    assert above is not None
    assert above.span_id == outer.get_span_context().span_id
    assert {format(span.context.span_id, "016x") for span in theirs.values()} >= {span.span_id for span in sink.spans}


def test_masks_and_content_rules_hold_for_what_the_plugin_records():
    coterie.instrument(mask=lambda text: text.replace("secret", "***"))
    sink = ListSink()
    try:
        with attempt_scope(scope_for_test(sink)):
            FakeListChatModel(responses=["a secret"]).invoke("tell the secret")
            with pytest.raises(ValueError, match="secret"):
                RunnableLambda(lambda _: (_ for _ in ()).throw(ValueError("secret"))).invoke(1)
    finally:
        coterie.uninstrument()
    assert len(sink.spans) == 2
    assert "secret" not in str(sink.spans)


def run_in(parent: Run | None) -> Run:
    span = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
    return Run(
        id=uuid.uuid4(),
        kind=RunKind.CHAIN,
        name="x",
        parent=parent,
        start_ns=0,
        span=span,
        identity=None,
        owns_span=True,
    )


def test_runs_that_never_end_are_bounded():
    table = RunTable(limit=10)
    for _ in range(100):
        root = run_in(None)
        table.add(root)
        table.add(run_in(root))
        assert len(table) <= 11
    assert table.get(root.id) is root


def test_what_is_open_below_an_ended_outermost_run_goes_with_it():
    table = RunTable()
    root = run_in(None)
    table.add(root)
    children = [run_in(root) for _ in range(3)]
    for child in children:
        table.add(child)
    assert table.take(root.id) is root
    assert len(table) == 0
    assert table.take(children[0].id) is None


def test_a_generator_that_is_thrown_away_leaves_nothing_open(switched_on):
    def run() -> None:
        stream = graph_of(speak).stream({}, stream_mode="updates")
        next(stream)
        del stream
        gc.collect()

    recorded(run)
    assert len(open_runs) == 0
