"""OTLP's JSON form: protobuf's own, but for ids, which are hex digits there."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from coterie_server.refusals import Refused


def to_protobuf(body: bytes) -> bytes:
    """The same request in its binary form.

    Raises:
        Refused: 400, it is no JSON; 422, it does not fit.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "BadRequestError", f"The body is no JSON: {error}.") from None
    if not isinstance(request, dict):
        raise Refused(422, "InvalidFieldError", "The body must be a JSON object, an ExportTraceServiceRequest.")
    try:
        _turn_ids(request)
        # Fields of later versions of OTLP are no error, as the specification wants.
        parsed = ParseDict(request, ExportTraceServiceRequest(), ignore_unknown_fields=True)
        return bytes(parsed.SerializeToString())
    except (ParseError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(422, "InvalidFieldError", f"The body is no ExportTraceServiceRequest: {error}") from None


def _turn_ids(request: dict[str, Any]) -> None:
    for of_resource in _list(request, "resourceSpans", "resource_spans"):
        for of_scope in _list(of_resource, "scopeSpans", "scope_spans"):
            for span in _list(of_scope, "spans"):
                _turn(span, "traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
                for link in _list(span, "links"):
                    _turn(link, "traceId", "trace_id", "spanId", "span_id")


def _list(owner: Any, *names: str) -> list[Any]:
    found: Any = next((owner[name] for name in names if owner.get(name) is not None), [])
    if not isinstance(found, list):
        raise TypeError(f"{names[0]} must be a list")
    for one in found:
        if not isinstance(one, dict):
            raise TypeError(f"{names[0]} must be a list of objects")
    return found


def _turn(owner: dict[str, Any], *names: str) -> None:
    for name in names:
        value = owner.get(name)
        # Some exporters write base64, as protobuf's own JSON form has it; ParseDict reads that.
        if isinstance(value, str) and not value.endswith("="):
            try:
                owner[name] = base64.b64encode(binascii.unhexlify(value)).decode()
            except (binascii.Error, ValueError):
                owner[name] = _NO_ID


_NO_ID = "AAA="
"""Two bytes: no id has this length, so this span alone is rejected."""
