"""OTLP over HTTP: ``POST /v1/traces``, protobuf or JSON, packed or not."""

from __future__ import annotations

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from coterie_server.bodies import unpacked, whole_body
from coterie_server.edge import Receive, Scope, Send
from coterie_server.otlp.intake import take
from coterie_server.otlp.json_form import to_protobuf
from coterie_server.otlp.spans import Taken
from coterie_server.parts import parts_of
from coterie_server.refusals import Refused
from coterie_server.tokens import Scope as Allowed
from coterie_server.tokens import require

PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Traces:
    """Takes spans, as an ASGI app."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: what it sent is on disk then, but for the spans that the answer says were rejected."""
        require(scope, Allowed.AGENT)
        parts = parts_of(scope)
        headers = dict(scope["headers"])
        form = headers.get(b"content-type", b"").partition(b";")[0].strip().decode("latin-1").lower()
        if form not in (PROTOBUF, JSON):
            raise Refused(
                415, "UnsupportedMediaTypeError", f"Content-Type {form!r} is not taken; {PROTOBUF} and {JSON} are."
            )
        encoding = headers.get(b"content-encoding", b"").strip().decode("latin-1").lower()
        try:
            packed = await whole_body(receive)
        except ClientDisconnect:
            return
        body = unpacked(packed, encoding, limit=parts.settings.limits.body_bytes)
        taken = await take(parts, body if form == PROTOBUF else to_protobuf(body))
        answer = _as_json(taken) if form == JSON else _as_protobuf(taken)
        told = [(b"content-type", form.encode()), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": told})
        await send({"type": "http.response.body", "body": answer})


def otlp_routes() -> list[Route]:
    """The route, for an app."""
    return [Route("/v1/traces", Traces(), methods=["POST"])]


def response_of(taken: Taken) -> ExportTraceServiceResponse:
    """The answer to a request."""
    if not taken.rejected:
        return ExportTraceServiceResponse()
    rejected = ExportTracePartialSuccess(rejected_spans=taken.rejected, error_message=taken.told)
    return ExportTraceServiceResponse(partial_success=rejected)


def _as_protobuf(taken: Taken) -> bytes:
    return bytes(response_of(taken).SerializeToString())


def _as_json(taken: Taken) -> bytes:
    if not taken.rejected:
        return b"{}"
    return orjson.dumps({"partialSuccess": {"rejectedSpans": str(taken.rejected), "errorMessage": taken.told}})
