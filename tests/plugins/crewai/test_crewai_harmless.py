"""The user's program behaves as it would without us: errors, hooks and listeners, faults of ours, switching off."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
from crewai import Agent, Crew, Flow, Task
from crewai.events.event_bus import CrewAIEventsBus, crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent
from crewai.flow.flow import start
from crewai.hooks.llm_hooks import get_after_llm_call_hooks, get_before_llm_call_hooks
from crewai.tools import tool
from crews import agent_of, crew_of, model_at, task_of
from opentelemetry.instrumentation.utils import suppress_instrumentation
from reading_spans import outline, scope_of

import coterie
from coterie import conventions as names
from coterie import roles
from coterie.capture import faults
from coterie.scope import attempt_scope
from coterie.testing import ListSink, scope_for_test
from coterie_crewai import CoterieEventListener, CrewAIInstrumentor, identity, runs, tools, uncaptured
from coterie_crewai.patches import patches

WRAPPED = [
    (Crew, "kickoff"),
    (Crew, "akickoff"),
    (Task, "_execute_core"),
    (Task, "_aexecute_core"),
    (Agent, "execute_task"),
    (Agent, "aexecute_task"),
    (Agent, "kickoff"),
    (Agent, "kickoff_async"),
    (CrewAIEventsBus, "emit"),
]
ONE_AGENT = ["invoke_workflow team", "> invoke_agent Solo", "> > chat Solo"]


@pytest.fixture
def switched_on():
    instrumentor = CrewAIInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def recorded(serve: Any) -> list[str]:
    sink, server = ListSink(), serve(lambda body: "x")
    with attempt_scope(scope_for_test(sink)):
        assert crew_of(task_of(agent_of(model_at(server), "Solo"))).kickoff().raw == "x"
    return outline(sink.spans)


def test_found_by_entry_point():
    (found,) = [e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "coterie_crewai"]
    assert found.load() is CrewAIInstrumentor
    assert tuple(CrewAIInstrumentor().instrumentation_dependencies()) == ("crewai >= 1.15",)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_who_does_not_use_crewai_does_not_import_it():
    code = (
        "import sys, coterie_crewai; i = coterie_crewai.CrewAIInstrumentor(); i.instrument(); i.uninstrument(); "
        "print([name for name in sys.modules if name.partition('.')[0] in ('crewai', 'openai')])"
    )
    assert run_python(code) == "[]"


def test_instrumented_before_the_import_of_crewai():
    code = (
        "from coterie_crewai import CrewAIInstrumentor as I; i = I(); i.instrument(); i.uninstrument(); "
        "i.instrument(); from crewai import Crew; print(hasattr(Crew.kickoff, '__wrapped__')); "
        "i.uninstrument(); print(hasattr(Crew.kickoff, '__wrapped__')); "
        "i.instrument(); print(hasattr(Crew.kickoff, '__wrapped__'))"
    )
    assert run_python(code).split() == ["True", "False", "True"]


def test_uninstrument_restores_everything(serve):
    before = [owner.__dict__[name] for owner, name in WRAPPED]
    sources, hooks = list(roles._acting_sources), (get_before_llm_call_hooks(), get_after_llm_call_hooks())
    handlers = dict(crewai_event_bus._sync_handlers)
    instrumentor = CrewAIInstrumentor()
    for _ in range(2):
        instrumentor.instrument()
        during = [owner.__dict__[name] for owner, name in WRAPPED]
        assert not [name for (_, name), a, b in zip(WRAPPED, before, during, strict=True) if a is b]
        instrumentor.uninstrument()
    assert [owner.__dict__[name] for owner, name in WRAPPED] == before
    assert roles._acting_sources == sources
    assert (get_before_llm_call_hooks(), get_after_llm_call_hooks()) == hooks
    assert crewai_event_bus._sync_handlers == handlers
    assert patches._wrapped == {}
    assert recorded(serve) == []


def test_somebody_wrapped_ours_since(serve, switched_on):
    ours = Crew.__dict__["kickoff"]
    theirs_called = []

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        theirs_called.append(1)
        return ours(self, *args, **kwargs)

    Crew.kickoff = theirs
    try:
        switched_on.uninstrument()
        assert Crew.__dict__["kickoff"] is theirs
        assert recorded(serve) == []
        assert theirs_called
    finally:
        Crew.kickoff = ours.__wrapped__


def test_uninstrument_during_a_run_records_it_to_its_end_and_nothing_new(serve, switched_on):
    server, sink = serve(lambda body: "x"), ListSink()
    crew = crew_of(task_of(agent_of(model_at(server), "Solo"), callback=lambda _: switched_on.uninstrument()))
    with attempt_scope(scope_for_test(sink)):
        crew.kickoff()
        crew.kickoff()
    assert outline(sink.spans) == ONE_AGENT


def test_instrumenting_twice_records_once(serve, switched_on):
    switched_on.instrument()
    CrewAIInstrumentor().instrument()
    assert recorded(serve) == ONE_AGENT
    switched_on.uninstrument()
    assert recorded(serve) == []


def test_the_listener_by_hand(serve):
    listener = CoterieEventListener()
    try:
        assert recorded(serve) == ONE_AGENT
    finally:
        listener.retire()
    assert recorded(serve) == []


def test_the_listener_beside_the_instrumentor_records_once_and_outlives_it(serve, switched_on):
    listener = CoterieEventListener()
    try:
        assert recorded(serve) == ONE_AGENT
        switched_on.uninstrument()
        assert recorded(serve) == ONE_AGENT
    finally:
        listener.retire()
    assert recorded(serve) == []


def test_the_same_exception_object_comes_out(serve, switched_on):
    fault, server, sink = KeyError("the user's own"), serve(lambda body: "x"), ListSink()

    def breaks(_: Any) -> None:
        raise fault

    with attempt_scope(scope_for_test(sink)), pytest.raises(KeyError) as caught:
        crew_of(task_of(agent_of(model_at(server), "Solo"), callback=breaks)).kickoff()
    assert caught.value is fault
    ended = {span.name: span.attributes.get(names.ERROR_TYPE) for span in sink.spans}
    assert (ended["invoke_agent Solo"], ended["invoke_workflow team"]) == ("KeyError", "KeyError")


def test_an_exception_in_a_flow(switched_on):
    class Breaking(Flow[Any]):
        """Raises."""

        @start()
        def begin(self) -> None:
            raise LookupError("in the flow")

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(LookupError, match="in the flow"):
        Breaking(suppress_flow_events=True).kickoff()
    (flow,) = sink.spans
    assert flow.attributes[names.ERROR_TYPE] == "LookupError"


def test_the_users_listeners_get_what_they_got(serve, switched_on):
    """Events keep their parents and their order, and the bus has no handlers of ours."""
    server, got = serve(lambda body: "x"), []
    with crewai_event_bus.scoped_handlers():

        @crewai_event_bus.on(LLMCallCompletedEvent)
        def completed(source: Any, event: Any) -> None:
            got.append((event.type, event.agent_role, event.started_event_id is not None))

        crew_of(task_of(agent_of(model_at(server), "Solo"))).kickoff()
        crewai_event_bus.flush()
    assert got == [("llm_call_completed", "Solo", True)]


@tool("look")
def look(at: str) -> str:
    """Look."""
    return at


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (runs, "start_workflow"),
        (runs, "start_agent"),
        (runs, "_end"),
        (runs, "wrap_new_classes"),
        (tools, "start_tool"),
        (tools, "end_tool"),
        (tools, "_call_id"),
        (uncaptured, "announce"),
        (uncaptured, "speaker"),
        (uncaptured, "_take"),
        (identity, "_flow_method"),
        (identity, "role_of"),
    ],
)
def test_a_fault_of_ours_is_logged_once_and_not_the_users(serve, switched_on, monkeypatch, caplog, module, name):
    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    def script(body: dict[str, Any]) -> Any:
        if any(message["role"] == "tool" for message in body["messages"]):
            return "x"
        return {"tool_calls": [{"name": "look", "arguments": {"at": "y"}}]}

    server = serve(script)
    monkeypatch.setattr(faults, "_noted", set())
    monkeypatch.setattr(module, name, fault)
    with caplog.at_level(logging.WARNING, logger="coterie"):
        for _ in range(2):
            assert crew_of(task_of(agent_of(model_at(server), "Solo", tools=[look]))).kickoff().raw == "x"
    said = [record.getMessage() for record in caplog.records if record.name == "coterie"]
    assert len(set(said)) == len(said)
    assert said or name in ("_flow_method", "role_of")
    assert identity.current_activity() is None


def test_suppressed_tracing_records_nothing(serve):
    coterie.instrument()
    try:
        server, sink = serve(lambda body: "x"), ListSink()
        with attempt_scope(scope_of(server, sink)), suppress_instrumentation():
            crew_of(task_of(agent_of(model_at(server), "Solo"))).kickoff()
        assert sink.spans == []
    finally:
        coterie.uninstrument()


def test_masks_hold_for_what_the_plugin_records(serve):
    @tool("whisper")
    def whisper(text: str) -> str:
        """Whisper."""
        raise ValueError(f"cannot whisper {text}")

    def script(body: dict[str, Any]) -> Any:
        if any(message["role"] == "tool" for message in body["messages"]):
            return "a secret answer"
        return {"tool_calls": [{"name": "whisper", "arguments": {"text": "the secret"}}]}

    server, sink = serve(script), ListSink()
    coterie.instrument(mask=lambda text: text.replace("secret", "***"))
    try:
        with attempt_scope(scope_for_test(sink)):
            crew_of(task_of(agent_of(model_at(server), "Solo", tools=[whisper]), "secret work")).kickoff()
    finally:
        coterie.uninstrument()
    assert len(sink.spans) == 5
    assert "secret" not in str(sink.spans)
