"""Capture goes on and off without a trace, and its own faults stay its own."""

from __future__ import annotations

import contextvars
import importlib.metadata
import inspect
import subprocess
import sys
import threading
from typing import Any

import openai
import pytest
import wrapt
from openai._base_client import AsyncAPIClient, SyncAPIClient
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation

from coterie import conventions as names
from coterie import plugins as plugins_module
from coterie.announced import AnnouncedCall, announce
from coterie.capture import call as call_module
from coterie.capture import faults, instrument, openai_sdk, response_tap, sdk_hook, uninstrument
from coterie.prompts.versions import PromptVersion
from coterie.roles import Identity
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test

QUESTION = [{"role": "user", "content": "How many?"}]
HOOKED = [(client, name) for client in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")]


@pytest.fixture(autouse=True)
def _off_afterwards():
    faults._noted.clear()
    yield
    uninstrument()


def ask(url: str, *, stream: bool = False) -> str:
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    if stream:
        chunks = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content or ""


def test_uninstrument_restores_everything_exactly() -> None:
    before = [client.__dict__[name] for client, name in HOOKED]
    instrument()
    instrument()
    assert all(client.__dict__[name] is not old for (client, name), old in zip(HOOKED, before, strict=True))
    uninstrument()
    assert all(client.__dict__[name] is old for (client, name), old in zip(HOOKED, before, strict=True))
    uninstrument()
    sink = ListSink()
    with ScriptedModel(lambda _: "4") as model, attempt_scope(scope_for_test(sink)):
        ask(model.base_url)
        assert names.HEADER_CALL_ID not in model.requests[0].headers
    assert sink.spans == []


def test_instrumenting_twice_records_once() -> None:
    instrument()
    instrument()
    sink = ListSink()
    with ScriptedModel(lambda _: "4") as model, attempt_scope(scope_for_test(sink)):
        ask(model.base_url)
    assert len(sink.spans) == 1


def test_a_wrapper_that_somebody_put_over_ours_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument()
    ours, seen = SyncAPIClient.request, []

    def theirs(self, *args, **kwargs):
        seen.append(args)
        return ours(self, *args, **kwargs)

    original = next(
        entry[2] for entry in openai_sdk.hook._wrapped if entry[0] is SyncAPIClient and entry[1] == "request"
    )
    monkeypatch.setattr(SyncAPIClient, "request", theirs)
    uninstrument()
    sink = ListSink()
    with ScriptedModel(lambda _: "4") as model, attempt_scope(scope_for_test(sink)):
        assert ask(model.base_url) == "4"
    assert (len(seen), sink.spans) == (1, [])
    monkeypatch.setattr(SyncAPIClient, "request", original)
    monkeypatch.undo()
    SyncAPIClient.request = original


@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize("client_class", [openai.OpenAI, openai.AsyncOpenAI])
async def test_a_wrapper_of_another_instrumentor_on_the_client_class(client_class: Any, theirs_first: bool) -> None:
    """As OpenInference's has it: put before ours, it holds the SDK's own method, past our wrapper."""
    theirs: list[Any] = []

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        theirs.append(instance)
        return wrapped(*args, **kwargs)

    for switch_on in (None, instrument) if theirs_first else (instrument, None):
        if switch_on is not None:
            switch_on()
        else:
            wrapt.wrap_function_wrapper(openai, f"{client_class.__name__}.request", wrapper)
    sink = ListSink()
    try:
        with ScriptedModel(lambda _: "hi") as model, attempt_scope(scope_for_test(sink)):
            client = client_class(base_url=model.base_url, api_key="none", max_retries=0)
            asked = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
            answer = await asked if inspect.isawaitable(asked) else asked
            assert answer.choices[0].message.content == "hi"
        uninstrument()
    finally:
        del client_class.request
    (span,) = sink.spans
    assert span.attributes[names.OUTPUT_TOKENS] > 0
    assert theirs == [client]
    assert not hasattr(client_class.request, "off")


def test_a_stream_under_way_is_recorded_to_its_end() -> None:
    instrument()
    sink = ListSink()
    with ScriptedModel(lambda _: "a b c") as model, attempt_scope(scope_for_test(sink)):
        client = openai.OpenAI(base_url=model.base_url, api_key="k")
        stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        next(stream)
        uninstrument()
        list(stream)
    assert sink.spans[0].attributes[names.FINISH_REASONS] == ["stop"]


def test_suppressed() -> None:
    instrument()
    sink = ListSink()
    scope = scope_for_test(sink, prompts=[PromptVersion("p", 1, "Be exact.", "agent")])
    with ScriptedModel(lambda _: "4") as model, attempt_scope(scope), suppress_instrumentation():
        ask(model.base_url)
        (request,) = model.requests
    assert sink.spans == []
    assert request.body["messages"] == QUESTION
    assert names.HEADER_CALL_ID not in request.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("module", "part"),
    [
        (sdk_hook, "LLMCall"),
        (sdk_hook, "_outgoing"),
        (sdk_hook, "tap"),
        (call_module, "start_span"),
        (call_module, "read_answer"),
        (response_tap, "assembler_for"),
    ],
)
def test_a_fault_of_ours_is_invisible_and_logged_once(
    module, part: str, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("our fault")

    instrument()
    monkeypatch.setattr(module, part, broken)
    announced = AnnouncedCall(Identity("Coder", "coder", ("Coder",)))
    with ScriptedModel(lambda _: "four of them") as model, attempt_scope(scope_for_test()) as scope:
        contextvars.copy_context().run(lambda: (announce(announced), ask(model.base_url, stream=stream)))
        assert ask(model.base_url, stream=stream) == "four of them"
        scope.end_open_calls()
    # A plugin whose call was not recorded on the wire must know: it then records the call itself.
    assert announced.captured is bool(scope.sink.spans)
    only_in_streams = part in ("tap", "assembler_for")
    assert caplog.text.count("RuntimeError: our fault") == (1 if stream or not only_in_streams else 0)


class Plugin(BaseInstrumentor):
    """A plugin that counts how often it is on."""

    needs = "openai"
    on = 0

    def instrumentation_dependencies(self):
        return [self.needs]

    def _instrument(self, **kwargs):
        type(self).on += 1

    def _uninstrument(self, **kwargs):
        type(self).on -= 1


# BaseInstrumentor keeps its one instance on the class: each needs a place of its own.
class Working(Plugin):
    _instance = None


class MissingFramework(Plugin):
    _instance = None
    needs = "no-such-framework-anywhere >= 1"


class Broken(Plugin):
    _instance = None

    def _instrument(self, **kwargs):
        raise RuntimeError("broken plugin")


def test_plugins_are_found_and_missing_frameworks_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    group = "opentelemetry_instrumentor"
    found = [
        importlib.metadata.EntryPoint("coterie_fake", f"{__name__}:Working", group),
        importlib.metadata.EntryPoint("coterie_missing", f"{__name__}:MissingFramework", group),
        importlib.metadata.EntryPoint("coterie_no_module", "no_such_module_anywhere:X", group),
        importlib.metadata.EntryPoint("somebody_elses", f"{__name__}:Broken", group),
    ]
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: found)
    instrument()
    instrument()
    assert (Working.on, MissingFramework.on) == (1, 0)
    assert caplog.records == []
    uninstrument()
    assert Working.on == 0


def test_a_broken_plugin_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    group = "opentelemetry_instrumentor"
    found = [
        importlib.metadata.EntryPoint("coterie_broken", f"{__name__}:Broken", group),
        importlib.metadata.EntryPoint("coterie_fake", f"{__name__}:Working", group),
    ]
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: found)
    instrument()
    assert Working.on == 1
    assert "coterie_broken could not be switched on" in caplog.text
    uninstrument()


def test_the_package_imports_without_openai() -> None:
    code = (
        "import sys; sys.modules['openai'] = None; import coterie.capture, coterie.testing, coterie.spans; "
        "assert not [m for m in sys.modules if m.startswith(('httpx', 'langchain', 'uvicorn', 'starlette'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_switching_from_many_threads() -> None:
    threads = [threading.Thread(target=instrument) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    uninstrument()
    assert SyncAPIClient.request.__module__ == "openai._base_client"
    assert not hasattr(SyncAPIClient.request, "off")
