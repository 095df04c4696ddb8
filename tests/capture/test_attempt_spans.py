"""Spans reach the attempt in which they started, through the user's provider or our own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any
from weakref import ref

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode

from coterie import spans
from coterie.scope import attempt_scope
from coterie.spans import tracer
from coterie.testing import ListSink, scope_for_test
from coterie.vocabulary import Mode, Span, SpanStatus


def run(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter: OpenTelemetry's global provider can be set but once in each."""
    prelude = """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
        from coterie.scope import attempt_scope
        from coterie.spans import tracer
        from coterie.testing import ListSink, ScriptedModel, scope_for_test
        exporter, sink = InMemorySpanExporter(), ListSink()
        def provide(**options):
            provider = TracerProvider(**options)
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(provider)
            return provider
        def exported():
            return [span.name for span in exporter.get_finished_spans()]
        def stored():
            return [span.name for span in sink.spans]
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_span_belongs_to_the_attempt_in_which_it_started() -> None:
    first, second = ListSink(), ListSink()
    with attempt_scope(scope_for_test(first, attempt_id="at-1")):
        span = tracer().start_span("work", attributes={"ids": [1, 2], "text": "x" * 100_000})
        span.add_event("noted", {"n": 1})
    with attempt_scope(scope_for_test(second, attempt_id="at-2")):
        thread = threading.Thread(target=span.end)
        thread.start()
        thread.join()
    assert second.spans == []
    (kept,) = first.spans
    assert (kept.name, kept.attempt_id, kept.rollout_id) == ("work", "at-1", "ro-test")
    assert kept.attributes["ids"] == [1, 2]
    assert len(kept.attributes["text"]) == 100_000
    assert (kept.events[0].name, kept.events[0].attributes) == ("noted", {"n": 1})
    assert (len(kept.trace_id), len(kept.span_id), kept.status) == (32, 16, SpanStatus.UNSET)
    assert kept.start_ns <= kept.end_ns


def test_outside_any_attempt_nothing_is_stored() -> None:
    with tracer().start_as_current_span("work"):
        pass


def test_a_span_that_never_ends_is_forgotten() -> None:
    provider, processor = TracerProvider(shutdown_on_exit=False), spans.AttemptSpanProcessor()
    provider.add_span_processor(processor)
    with attempt_scope(scope_for_test()):
        of_provider, own = provider.get_tracer("user").start_span("lost"), tracer().start_span("lost")
        forgotten = ref(own)
        assert len(processor._scopes) == 1
        del of_provider, own
        gc.collect()
    assert len(processor._scopes) == 0
    assert forgotten() is None


def test_spans_of_our_own_tell_the_same_as_those_of_opentelemetry() -> None:
    provider, told = TracerProvider(shutdown_on_exit=False), []
    provider.add_span_processor(spans.AttemptSpanProcessor())
    for made_by in (provider.get_tracer("user"), tracer()):
        sink = ListSink()
        with attempt_scope(scope_for_test(sink)):
            _fill(made_by)
        told.append([_comparable(span, sink.spans) for span in sink.spans])

    assert told[0] == told[1]
    assert [span["name"] for span in told[1]] == ["below", "renamed", "good", "broken"]


def _fill(made_by: trace.Tracer) -> None:
    with made_by.start_as_current_span(
        "above", attributes={"a": 1, "b": (1.5, 2.5), "c": b"\x00"}, start_time=5
    ) as above:
        above.update_name("renamed")
        above.set_attributes({"d": True, "e": ["x", "y"], "a": 2, "f": Mode.TRAIN, "": "no name"})
        above.add_event("noted", {"n": (1, 2)}, 7)
        made_by.start_span("below", start_time=6).end(7)
        above.set_status(Status(StatusCode.ERROR, "bad"))
        above.set_status(StatusCode.UNSET)
    above.set_attribute("late", 1)
    above.end()
    good = made_by.start_span("good", start_time=6)
    good.set_status(StatusCode.OK)
    good.set_status(StatusCode.ERROR, "too late")
    good.end(7)
    with pytest.raises(KeyError), made_by.start_as_current_span("broken"):
        raise KeyError("x")


def _comparable(span: Span, every: list[Span]) -> dict[str, Any]:
    parents = {other.span_id: (other.name, other.trace_id) for other in every}
    return {
        "name": span.name,
        "below": parents.get(span.parent_id) == ("renamed", span.trace_id) if span.parent_id else None,
        "ids": (len(span.trace_id), len(span.span_id), span.rollout_id, span.attempt_id),
        "start": span.start_ns if span.start_ns < 10 else "now",
        "end": span.end_ns if span.end_ns < 10 else "now",
        "status": (span.status, span.status_message),
        "attributes": sorted((name, repr(value)) for name, value in span.attributes.items()),
        "events": [
            (
                event.name,
                event.time_ns if event.time_ns < 10 else "now",
                {**event.attributes, "exception.stacktrace": ""},
            )
            for event in span.events
        ],
    }


def test_a_broken_sink_does_not_break_the_span(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ListSink):
        def add_span(self, span: object) -> None:
            raise OSError("disk full")

    with attempt_scope(scope_for_test(Broken())), tracer().start_as_current_span("work"):
        pass
    assert "'work' is lost" in caplog.text


def test_the_users_provider_is_used_and_its_exporter_sees_our_spans() -> None:
    run("""
        provider = provide()
        with attempt_scope(scope_for_test(sink)):
            with tracer().start_as_current_span("ours"), trace.get_tracer("user").start_as_current_span("theirs"):
                pass
            with tracer().start_as_current_span("ours again"):
                pass
        with tracer().start_as_current_span("outside"):
            pass
        assert stored() == ["theirs", "ours", "ours again"], stored()
        assert exported() == ["theirs", "ours", "ours again", "outside"], exported()
        assert sink.spans[0].parent_id == sink.spans[1].span_id
        assert len(provider._active_span_processor._span_processors) == 2
    """)


def test_a_provider_that_is_set_later_is_used_from_then_on() -> None:
    run("""
        with attempt_scope(scope_for_test(sink)):
            with tracer().start_as_current_span("before"):
                pass
            provide()
            with tracer().start_as_current_span("after"):
                pass
        assert (stored(), exported()) == (["before", "after"], ["after"])
    """)


@pytest.mark.parametrize(
    "options",
    [
        "sampler=ALWAYS_OFF",
        "sampler=ParentBased(TraceIdRatioBased(0.001))",
        "sampler=TraceIdRatioBased(0.001)",
        "span_limits=SpanLimits(max_attribute_length=20)",
        "span_limits=SpanLimits(max_span_attribute_length=20)",
    ],
)
def test_a_provider_that_would_lose_something_is_left_alone(options: str) -> None:
    run(f"""
        provide({options})
        for number in range(20):
            with attempt_scope(scope_for_test(sink)), tracer().start_as_current_span("ours") as span:
                span.set_attribute("text", "x" * 1000)
        assert len(sink.spans) == 20
        assert all(len(span.attributes["text"]) == 1000 for span in sink.spans)
        assert exported() == []
    """)


def test_a_span_in_a_trace_that_is_not_sampled_is_kept() -> None:
    run("""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
        provide()
        unsampled = NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(0)))
        with trace.use_span(unsampled), attempt_scope(scope_for_test(sink)):
            with tracer().start_as_current_span("ours"):
                pass
        assert stored() == ["ours"]
    """)


def test_settings_of_the_environment_do_not_cut_or_drop_spans() -> None:
    run(
        """
        with attempt_scope(scope_for_test(sink)), tracer().start_as_current_span("ours") as span:
            span.set_attribute("text", "x" * 1000)
            span.set_attributes({f"a{n}": n for n in range(300)})
        assert len(sink.spans[0].attributes["text"]) == 1000
        assert sink.spans[0].attributes["a299"] == 299
        """,
        OTEL_SDK_DISABLED="true",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="5",
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="4",
        OTEL_TRACES_SAMPLER="always_off",
    )


def test_captured_calls_reach_the_users_exporter() -> None:
    run("""
        import openai
        from coterie.capture import instrument
        provide()
        instrument()
        with ScriptedModel(lambda _: "4") as model:
            client = openai.OpenAI(base_url=model.base_url, api_key="k")
            with attempt_scope(scope_for_test(sink)):
                client.chat.completions.create(model="m", messages=[])
            client.chat.completions.create(model="m", messages=[])
        assert (stored(), exported()) == (["chat m"], ["chat m", "chat m"])
    """)
