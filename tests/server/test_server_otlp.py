"""OTLP intake: the SDK's own exporters, JSON, and what is wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from server_parts import ServerProcess, error_of

import coterie as coterie_package
from coterie.vocabulary import Span, SpanStatus
from coterie_server.otlp.spans import read_spans
from coterie_server.tokens import Scope

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def agent(server: ServerProcess) -> str:
    return server.token(Scope.AGENT, name="agent of OTLP tests")


@pytest.fixture
def client(server: ServerProcess, agent: str) -> Iterator[httpx.Client]:
    with server.client(agent) as client:
        yield client


def kept(server: ServerProcess, trace_id: str) -> Sequence[Span]:
    """The spans of a trace, as another process finds them on the disk."""

    async def read() -> Sequence[Span]:
        async with coterie_package.connect(server.folder / "coterie.db") as store:
            return (await store.list_spans(trace_id=trace_id)).items

    return asyncio.run(read())


def record(exporter: SpanExporter) -> tuple[str, ReadableSpan]:
    """Make spans with the SDK, and send them."""
    resource = Resource({"service.name": "team", "coterie.rollout.id": "ro-7", "coterie.attempt.id": "at-7"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("my.agents", "1.2")
    with tracer.start_as_current_span("team") as parent:
        context = parent.get_span_context()
        with tracer.start_as_current_span(
            "chat", kind=SpanKind.CLIENT, links=[Link(context, {"why": "parent"})]
        ) as span:
            span.set_attributes(
                {
                    "text": "grüß",
                    "empty": "",
                    "whole": -(2**40),
                    "real": 0.5,
                    "yes": True,
                    "tokens": [*range(300), 2**31, -1],
                    "logprobs": [-0.25, -1.5],
                    "words": ["a", "b"],
                    "flags": [True, False],
                    "raw": b"\x00\x01",
                }
            )
            span.add_event("thought", {"depth": 2}, timestamp=1_700_000_000_000_000_001)
            span.set_status(Status(StatusCode.ERROR, "it failed"))
    provider.shutdown()
    return f"{context.trace_id:032x}", span  # type: ignore[return-value]


def exporters(server: ServerProcess, token: str) -> dict[str, SpanExporter]:
    headers = {"authorization": f"Bearer {token}"}
    url = f"{server.address}/v1/traces"
    return {
        "http": HttpExporter(url, headers=headers),
        "gzip": HttpExporter(url, headers=headers, compression=Compression.Gzip),
        "deflate": HttpExporter(url, headers=headers, compression=Compression.Deflate),
        "grpc": GrpcExporter(server.grpc_address, headers=headers, insecure=True),
        "grpc gzip": GrpcExporter(
            server.grpc_address, headers=headers, insecure=True, compression=grpc.Compression.Gzip
        ),
    }


@pytest.mark.parametrize("way", ["http", "gzip", "deflate", "grpc", "grpc gzip"])
def test_what_the_sdk_sends_is_kept_whole(server: ServerProcess, agent: str, way: str) -> None:
    trace_id, made = record(exporters(server, agent)[way])
    chat, team = kept(server, trace_id)
    assert (team.name, team.parent_id) == ("team", None)
    assert (chat.name, chat.parent_id) == ("chat", team.span_id)
    assert (chat.rollout_id, chat.attempt_id) == ("ro-7", "at-7")
    assert (chat.start_ns, chat.end_ns) == (made.start_time, made.end_time)
    assert (chat.status, chat.status_message) == (SpanStatus.ERROR, "it failed")
    assert chat.attributes == {
        "text": "grüß",
        "empty": "",
        "whole": -(2**40),
        "real": 0.5,
        "yes": True,
        "tokens": [*range(300), 2**31, -1],
        "logprobs": [-0.25, -1.5],
        "words": ["a", "b"],
        "flags": [True, False],
        "raw": "AAE=",
        "resource.service.name": "team",
        "otel.scope.name": "my.agents",
        "otel.span.kind": "client",
        "otel.links": [{"trace_id": trace_id, "span_id": team.span_id, "attributes": {"why": "parent"}}],
    }
    (event,) = chat.events
    assert (event.name, event.time_ns, event.attributes) == ("thought", 1_700_000_000_000_000_001, {"depth": 2})


def request_of(*spans: dict[str, Any], resource: dict[str, str] | None = None) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    for name, value in (resource or {}).items():
        of_resource.resource.attributes.add(key=name, value=AnyValue(string_value=value))
    of_scope = of_resource.scope_spans.add()
    for span in spans:
        of_scope.spans.add(**{"name": "s", "start_time_unix_nano": 5, "end_time_unix_nano": 9, **span})
    return request


def ids() -> dict[str, bytes]:
    return {"trace_id": os.urandom(16), "span_id": os.urandom(8)}


def attribute(value: AnyValue) -> Any:
    request = request_of({**ids(), "attributes": [KeyValue(key="it", value=value)]})
    (span,) = read_spans(request.SerializeToString()).spans
    return span.attributes["it"]


def test_every_kind_of_value() -> None:
    def of(*values: AnyValue) -> AnyValue:
        return AnyValue(array_value=ArrayValue(values=values))

    one, half, nothing = AnyValue(int_value=1), AnyValue(double_value=0.5), AnyValue()
    assert attribute(nothing) is None
    assert attribute(of()) == []
    assert attribute(of(one, nothing, one)) == [1, None, 1]
    assert attribute(of(nothing)) == [None]
    assert attribute(of(one, half, one)) == [1, 0.5, 1]
    assert attribute(of(half, half)) == [0.5, 0.5]
    assert attribute(of(half, nothing)) == [0.5, None]
    assert attribute(of(one, AnyValue(string_value="x"))) == [1, "x"]
    assert attribute(of(AnyValue(int_value=0), AnyValue(int_value=-(2**63)))) == [0, -(2**63)]
    assert attribute(of(of(one), of(of(half)))) == [[1], [[0.5]]]
    assert attribute(of(AnyValue(bytes_value=b"\xff"))) == ["/w=="]
    nested = KeyValueList(values=[KeyValue(key="a", value=of(one)), KeyValue(key="b", value=nothing)])
    assert attribute(AnyValue(kvlist_value=nested)) == {"a": [1], "b": None}
    assert attribute(of(AnyValue(kvlist_value=nested))) == [{"a": [1], "b": None}]


def test_ids_of_the_span_count_more_than_those_of_the_resource() -> None:
    own = [KeyValue(key="coterie.rollout.id", value=AnyValue(string_value="ro-1"))]
    both = {"coterie.rollout.id": "ro-2", "coterie.attempt.id": "at-2"}
    request = request_of({**ids(), "attributes": own}, ids(), resource=both)
    first, second = read_spans(request.SerializeToString()).spans
    assert (first.rollout_id, first.attempt_id) == ("ro-1", None)
    assert (second.rollout_id, second.attempt_id) == ("ro-2", "at-2")


def test_spans_with_bad_ids_are_rejected_one_by_one(server: ServerProcess, client: httpx.Client) -> None:
    good = ids()
    bad = [
        {**ids(), "trace_id": b"short"},
        {**ids(), "trace_id": bytes(16)},
        {**ids(), "span_id": bytes(8)},
        {**ids(), "span_id": b""},
        {**ids(), "parent_span_id": b"123"},
        {**ids(), "start_time_unix_nano": 2**64 - 1},
    ]
    answer = client.post("/v1/traces", content=request_of(*bad, good).SerializeToString(), headers=PROTOBUF)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-protobuf"
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_spans == 6
    for said in ("trace_id", "span_id", "parent_span_id", "and 1 more"):
        assert said in partial.error_message
    (span,) = kept(server, good["trace_id"].hex())
    assert (span.start_ns, span.end_ns) == (5, 9)
    everything = client.post("/v1/traces", content=request_of(ids()).SerializeToString(), headers=PROTOBUF)
    assert everything.content == b""


def test_sending_again_doubles_nothing(server: ServerProcess, client: httpx.Client) -> None:
    one = ids()
    body = request_of(one).SerializeToString()
    for _ in range(3):
        assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    assert len(kept(server, one["trace_id"].hex())) == 1


def test_json(server: ServerProcess, client: httpx.Client) -> None:
    trace_id = os.urandom(16).hex()
    span = {
        "traceId": trace_id.upper(),
        "spanId": "00f067aa0ba902b7",
        "parentSpanId": "",
        "name": "chat",
        "kind": 3,
        "startTimeUnixNano": "1700000000000000001",
        "endTimeUnixNano": 1700000000000000009,
        "attributes": [
            {"key": "n", "value": {"intValue": "12"}},
            {"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1}, {"stringValue": "x"}]}}},
            {"key": "map", "value": {"kvlistValue": {"values": [{"key": "a", "value": {"boolValue": True}}]}}},
        ],
        "status": {"code": "STATUS_CODE_OK"},
        "aFieldOfTomorrow": 1,
    }
    bad = {"traceId": "xyz", "spanId": "00f067aa0ba902b7", "name": "bad"}
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span, bad]}]}]}
    answer = client.post("/v1/traces", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
    (found,) = kept(server, trace_id)
    assert (found.span_id, found.parent_id, found.start_ns) == ("00f067aa0ba902b7", None, 1_700_000_000_000_000_001)
    assert found.status is SpanStatus.OK
    assert found.attributes == {"n": 12, "list": [1, "x"], "map": {"a": True}, "otel.span.kind": "client"}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b"\xff\xff\xff", PROTOBUF),
        (
            400,
            request_of({"trace_id": bytes(range(16)), "span_id": bytes(range(8))}).SerializeToString()[:-3],
            PROTOBUF,
        ),
        (400, b"{", {"content-type": "application/json"}),
        (422, b"[]", {"content-type": "application/json"}),
        (422, b'{"resourceSpans": 3}', {"content-type": "application/json"}),
        (422, b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": 5}]}]}]}', {"content-type": "application/json"}),
        (422, b'{"resourceSpans": [{"scopeSpans": [{"spans": [null]}]}]}', {"content-type": "application/json"}),
        (415, b"<spans/>", {"content-type": "text/xml"}),
        (415, b"", {}),
        (415, b"x", {**PROTOBUF, "content-encoding": "br"}),
        (400, b"no gzip", {**PROTOBUF, "content-encoding": "gzip"}),
        (400, gzip.compress(b"12345678" * 9, mtime=0)[:-9], {**PROTOBUF, "content-encoding": "gzip"}),
    ],
)
def test_bad_requests(client: httpx.Client, status: int, body: bytes, headers: dict[str, str]) -> None:
    answer = client.post("/v1/traces", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    error_of(answer)


def test_nesting_without_end_is_refused(client: httpx.Client) -> None:
    value = AnyValue(int_value=1).SerializeToString()
    for _ in range(3000):
        array = b"\x0a" + varint(len(value)) + value
        value = b"\x2a" + varint(len(array)) + array
    pair = b"\x0a\x01k\x12" + varint(len(value)) + value
    span = request_of(ids()).resource_spans[0].scope_spans[0].spans[0].SerializeToString()
    span += b"\x4a" + varint(len(pair)) + pair
    of_scope = b"\x12" + varint(len(span)) + span
    of_resource = b"\x12" + varint(len(of_scope)) + of_scope
    body = b"\x0a" + varint(len(of_resource)) + of_resource
    assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 400
    deep = '{"resourceSpans":' * 2000 + "1" + "}" * 2000
    answer = client.post("/v1/traces", content=deep, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_what_unpacks_to_too_much_is_refused(client: httpx.Client) -> None:
    bomb = zlib.compressobj(9, wbits=31)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(200)) + bomb.flush()
    assert len(packed) < 2**20
    answer = client.post("/v1/traces", content=packed, headers={**PROTOBUF, "content-encoding": "gzip"})
    assert (answer.status_code, error_of(answer)[0]) == (413, "BodyTooLargeError")


def test_grpc_tells_what_is_wrong(server: ServerProcess, agent: str) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = TraceServiceStub(channel)

        def code(request: ExportTraceServiceRequest, token: str | None) -> grpc.StatusCode:
            metadata = [("authorization", f"Bearer {token}")] if token else []
            with pytest.raises(grpc.RpcError) as caught:
                stub.Export(request, metadata=metadata, timeout=20)
            assert "Traceback" not in caught.value.details()
            return caught.value.code()

        good = request_of(ids())
        assert code(good, None) is grpc.StatusCode.UNAUTHENTICATED
        assert code(good, "ct_wrong") is grpc.StatusCode.UNAUTHENTICATED
        assert code(good, server.token(Scope.READ)) is grpc.StatusCode.PERMISSION_DENIED
        raw = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as caught:
            raw(b"\xff\xff", metadata=[("authorization", f"Bearer {agent}")], timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        answer = stub.Export(request_of({**ids(), "span_id": b"1"}), metadata=[("authorization", f"Bearer {agent}")])
        assert answer.partial_success.rejected_spans == 1


def test_secrets_in_spans_are_not_kept(server: ServerProcess, client: httpx.Client) -> None:
    one = ids()
    texts = {
        "http.request.header.authorization": "Bearer sk-very-secret",
        "http.request.header.x-api-key": "very-secret",
        "openai.api_key": "sk-very-secret",
        "url.full": "https://user:very-secret@example.org/x?y=1",
        "note": "see postgresql://app:very-secret@db/x for it",
        "gen_ai.usage.input_tokens": "7",
        "user.mail": "a://b mail me@example.org",
    }
    event = {"name": "call", "attributes": [KeyValue(key="cookie", value=AnyValue(string_value="very-secret"))]}
    attributes = [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in texts.items()]
    body = request_of({**one, "attributes": attributes, "events": [event]}).SerializeToString()
    assert client.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    (span,) = kept(server, one["trace_id"].hex())
    assert "very-secret" not in json.dumps([dict(span.attributes), dict(span.events[0].attributes)])
    assert span.attributes["url.full"] == "https://user:…@example.org/x?y=1"
    assert span.attributes["gen_ai.usage.input_tokens"] == "7"
    assert span.attributes["user.mail"] == "a://b mail me@example.org"


def test_spans_are_counted(server: ServerProcess, client: httpx.Client) -> None:
    def count(outcome: str) -> float:
        with server.client() as admin:
            lines = admin.get("/metrics").text.splitlines()
        mark = f'coterie_otlp_spans_total{{outcome="{outcome}"}} '
        return next((float(line.removeprefix(mark)) for line in lines if line.startswith(mark)), 0.0)

    taken, refused = count("taken"), count("refused")
    body = request_of(ids(), ids(), {**ids(), "span_id": b""}).SerializeToString()
    client.post("/v1/traces", content=body, headers=PROTOBUF)
    assert (count("taken"), count("refused")) == (taken + 2, refused + 1)
