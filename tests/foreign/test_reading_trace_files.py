"""Files of traces: OTLP JSON and the SDK's own form, one a line or spread out, whole or broken."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from coterie.errors import CoterieError
from coterie.foreign import TraceFormatError, read_spans, read_traces
from coterie.vocabulary import SpanStatus

RECORDED = Path(__file__).parent / "recorded"
TRACE, ROOT, CHILD = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


def text(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}]}


AGENT = {
    "traceId": TRACE,
    "spanId": ROOT,
    "name": "invoke_agent writer",
    "startTimeUnixNano": "1700000000000000001",
    "endTimeUnixNano": "1700000000000000900",
    "attributes": [text("gen_ai.operation.name", "invoke_agent"), text("gen_ai.agent.name", "writer")],
}
CHAT = {
    "traceId": TRACE,
    "spanId": CHILD,
    "parentSpanId": ROOT,
    "name": "chat m",
    "startTimeUnixNano": 1700000000000000100,
    "endTimeUnixNano": "1700000000000000200",
    "status": {"code": 2, "message": "cut"},
    "attributes": [
        text("gen_ai.operation.name", "chat"),
        text("gen_ai.input.messages", json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}])),
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}},
        {
            "key": "gen_ai.response.finish_reasons",
            "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}},
        },
        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "a", "value": {"doubleValue": 0.5}}]}}},
        {"key": "nothing", "value": {}},
    ],
    "events": [{"name": "e", "timeUnixNano": "3", "attributes": [{"key": "b", "value": {"boolValue": True}}]}],
}


def test_otlp_json_lines_become_spans_and_an_episode() -> None:
    lines = [json.dumps(otlp(AGENT)), "", json.dumps(otlp(CHAT)), json.dumps({"resourceMetrics": []})]
    agent, chat = read_spans(lines)
    assert (agent.trace_id, agent.span_id, agent.parent_id) == (TRACE, ROOT, None)
    assert (chat.span_id, chat.parent_id) == (CHILD, ROOT)
    assert (chat.start_ns, chat.end_ns) == (1700000000000000100, 1700000000000000200)
    assert (chat.status, chat.status_message) == (SpanStatus.ERROR, "cut")
    assert chat.attributes["gen_ai.usage.input_tokens"] == 7
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert chat.attributes["map"] == {"a": 0.5}
    assert chat.attributes["nothing"] is None
    assert (chat.events[0].name, chat.events[0].time_ns, chat.events[0].attributes) == ("e", 3, {"b": True})
    (episode,) = read_traces(lines, task_id="t7")
    assert (episode.task_id, episode.rollout_id, episode.attempt_id) == ("t7", TRACE, TRACE)
    (turn,) = episode.turns
    assert (turn.agent, turn.error, turn.finish_reason) == ("writer", "cut", "stop")
    assert turn.messages == ({"role": "user", "content": "Hi"},)


def test_ids_as_protobuf_writes_them_are_the_same_ids() -> None:
    coded = CHAT | {
        name: base64.b64encode(bytes.fromhex(CHAT[name])).decode() for name in ("traceId", "spanId", "parentSpanId")
    }
    (span,) = read_spans([json.dumps(otlp(coded | {"status": {"code": "STATUS_CODE_OK"}}))])
    assert (span.trace_id, span.span_id, span.parent_id, span.status) == (TRACE, CHILD, ROOT, SpanStatus.OK)


def test_what_the_console_exporter_printed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spans.json"
    provider = TracerProvider()
    with path.open("w") as out:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out)))
        tracer = provider.get_tracer("t")
        with (
            tracer.start_as_current_span(
                "a", attributes={"openinference.span.kind": "AGENT", "agent.name": "ann"}
            ) as top,
            tracer.start_as_current_span("b", attributes={"openinference.span.kind": "LLM"}) as call,
        ):
            call.set_attribute("llm.output_messages.0.message.content", "Hi")
            call.add_event("e", {"n": 1})
    (episode,) = read_traces(path)
    (turn,) = episode.turns
    assert (turn.agent, turn.agent_path, turn.text) == ("ann", "ann", "Hi")
    assert episode.attempt_id == f"{top.get_span_context().trace_id:032x}"
    read = {span.name: span for span in read_spans(str(path))}
    assert abs(read["a"].start_ns - top.start_time) < 1000  # the SDK writes microseconds
    assert read["b"].parent_id == read["a"].span_id == f"{top.get_span_context().span_id:016x}"
    assert read["b"].events[0].attributes == {"n": 1}


def test_traces_are_episodes_by_their_start_and_attempts_of_ours_stay_together() -> None:
    def one(trace: str, at: int, **ids: str) -> dict[str, Any]:
        named = [text(f"coterie.{name}.id", value) for name, value in ids.items()]
        span = CHAT | {"traceId": trace * 32, "parentSpanId": "", "startTimeUnixNano": at, "endTimeUnixNano": at + 5}
        return span | {"spanId": f"{at:016x}", "attributes": [*CHAT["attributes"], *named]}

    empty = AGENT | {"traceId": "e" * 32, "attributes": [text("http.method", "GET")]}
    ids = {"rollout": "ro-1", "attempt": "at-1"}
    lines = [json.dumps(otlp(one("c", 300), one("a", 200, **ids), one("b", 100, **ids), empty))]
    first, second = read_traces(lines)
    assert (first.rollout_id, first.attempt_id, len(first.turns)) == ("ro-1", "at-1", 2)
    assert (second.attempt_id, len(second.turns)) == ("c" * 32, 1)


def test_two_autogen_teams_in_one_file_are_two_episodes() -> None:
    both = [(RECORDED / f"genai_autogen_{team}.json").read_text() for team in ("swarm", "round_robin")]
    assert {episode.roles for episode in read_traces("".join(both).splitlines())} == {
        ("writer", "reviewer"),
        ("alice", "bob"),
    }


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "this is no JSON"),
        ('{"resourceSpans": [', "this is no JSON"),
        ("[" * 100_000, "this is no JSON"),
        ('"text"', "this is no span"),
        ("7", "this is no span"),
        ('{"hello": 1}', "an object with hello"),
        ('[{"hello": 1}]', "this is no span"),
        ('{"resourceSpans": 7}', "cannot be read"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', "cannot be read"),
        (json.dumps(otlp(CHAT | {"startTimeUnixNano": "soon"})), "cannot be read"),
        (json.dumps(otlp(CHAT | {"attributes": [7]})), "cannot be read"),
        ('{"context": {"trace_id": "0x1", "span_id": "0x2"}, "start_time": "yesterday"}', "cannot be read"),
        ('{"context": 7, "start_time": "2026-01-01T00:00:00Z"}', "cannot be read"),
    ],
)
def test_a_broken_file_says_where_and_what(line: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(otlp(AGENT)) + "\n" + line + "\n")
    with pytest.raises(TraceFormatError, match=wrong) as caught:
        read_traces(path)
    assert "traces.jsonl, line 2" in str(caught.value)
    assert isinstance(caught.value, CoterieError)


def test_an_empty_file_has_no_episodes(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n \n")
    assert read_traces(path) == []
    with pytest.raises(FileNotFoundError):
        read_traces(tmp_path / "none.jsonl")
