"""The OTLP decoder against bytes that nobody meant: it takes them, or refuses them, and nothing else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from coterie_server.otlp.json_form import to_protobuf
from coterie_server.otlp.spans import Taken, read_spans
from coterie_server.refusals import Refused

INTEGERS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text("abcdefgh", min_size=1, max_size=6)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), INTEGERS, st.floats(allow_nan=False), TEXTS, st.binary(max_size=10).map(bytes)
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(SCALARS, st.lists(INTEGERS, max_size=8), st.lists(st.floats(allow_nan=False), max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


def to_any(value: Any) -> AnyValue:
    """A value as OTLP has it."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(to_any, value)))
        case _:
            pairs = [KeyValue(key=name, value=to_any(one)) for name, one in value.items()]
            return AnyValue(kvlist_value=KeyValueList(values=pairs))


def expected(value: Any) -> Any:
    """A value as the store has it."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case list():
            return [expected(one) for one in value]
        case dict():
            return {name: expected(one) for name, one in value.items()}
        case _:
            return value


def request_with(attributes: dict[str, Any]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="chat")
    span.attributes.extend(KeyValue(key=name, value=to_any(value)) for name, value in attributes.items())
    span.events.add(name="event", time_unix_nano=7).attributes.extend(span.attributes)
    return request


@given(st.dictionaries(NAMES, VALUES, max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_was_sent_is_what_is_kept(attributes: dict[str, Any]) -> None:
    (span,) = read_spans(request_with(attributes).SerializeToString()).spans
    # Each to its own text, since True equals 1 and 1 equals 1.0.
    assert repr(span.attributes) == repr(expected(attributes))
    assert repr(span.events[0].attributes) == repr(expected(attributes))


@given(st.dictionaries(NAMES, VALUES, max_size=5))
@settings(max_examples=40, deadline=None)
def test_json_says_the_same_as_protobuf(attributes: dict[str, Any]) -> None:
    request = request_with(attributes)
    told = MessageToDict(request)
    (span,) = told["resourceSpans"][0]["scopeSpans"][0]["spans"]
    span["traceId"], span["spanId"] = (b"t" * 16).hex(), (b"s" * 8).hex()
    assert read_spans(to_protobuf(json.dumps(told).encode())) == read_spans(request.SerializeToString())


def taken(body: bytes) -> Taken | None:
    """What came of these bytes; None if they were refused as they may be."""
    try:
        found = read_spans(body)
    except DecodeError:
        return None
    for span in found.spans:
        assert len(span.trace_id) == 32
        assert len(span.span_id) == 16
        assert -(2**63) <= span.start_ns < 2**63
        json.dumps([dict(span.attributes), [dict(event.attributes) for event in span.events]])
    assert bool(found.rejected) == bool(found.told)
    return found


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_random_bytes(body: bytes) -> None:
    taken(body)


@given(
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["set", "drop", "insert"])), max_size=6
    ),
)
@settings(max_examples=150, deadline=None)
def test_a_valid_message_with_bytes_changed(attributes: dict[str, Any], changes: list[tuple[int, int, str]]) -> None:
    body = bytearray(request_with(attributes).SerializeToString())
    for at, value, how in changes:
        place = at % (len(body) + 1)
        if how == "insert":
            body.insert(place, value)
        elif place < len(body):
            body[place : place + 1] = bytes([value]) if how == "set" else b""
    taken(bytes(body))


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | TEXTS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceSpans", "scopeSpans", "spans", "traceId", "spanId", "attributes", "key", "value", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=100, deadline=None)
def test_random_json(body: bytes) -> None:
    try:
        binary = to_protobuf(body)
    except Refused as refused:
        status = refused.status
    else:
        status = 200
        assert taken(binary) is not None
    assert status in (200, 400, 422)


@pytest.mark.parametrize(
    "elements", [b"", b"\x0a\x00", b"\x0a\x02\x18\x01\x0a\x00", b"\x0a\x02\x18\x01\x12\x02\x18\x01"]
)
def test_arrays_that_are_not_as_one_would_write_them(elements: bytes) -> None:
    """What merges on the wire may hide an element: then each is read by itself."""
    value = b"\x2a" + bytes([len(elements)]) + elements
    pair = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    span.attributes.add().MergeFromString(pair)
    (found,) = read_spans(request.SerializeToString()).spans
    official = [
        one.int_value if one.WhichOneof("value") else None for one in span.attributes[0].value.array_value.values
    ]
    assert found.attributes == {"k": official}
