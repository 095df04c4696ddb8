"""The OpenAPI description of what is not the store: OTLP, health, figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie_server.metrics import MEDIA_TYPE

Schema = dict[str, Any]

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_TEXT = {"type": "string"}
_SPANS = {
    "application/x-protobuf": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {"schema": {"type": "object", "description": "In OTLP's JSON form: ids as hex digits."}},
}


def describe_the_rest(document: Schema) -> Schema:
    """Add these routes to an OpenAPI document that has the type ``Error``, and give it."""
    document["paths"] |= {
        "/v1/traces": {
            "post": {
                "operationId": "export_traces",
                "tags": ["otlp"],
                "summary": "Take spans by OTLP",
                "description": "An `ExportTraceServiceRequest`, plain or packed with gzip or deflate. The spans are on disk "
                "when it answers; those that it could not keep are counted in the answer, with reasons.\n\n"
                "Needs a token with one of the scopes: agent, runner, trainer, admin.",
                "security": [{"token": []}],
                "requestBody": {"required": True, "content": _SPANS},
                "responses": {
                    "200": {
                        "description": "An `ExportTraceServiceResponse` in the form of the request.",
                        "content": _SPANS,
                    },
                    **_refusals(
                        {"400": "No such message.", "413": "Too large.", "415": "Of another form.", "422": "No fit."}
                    ),
                },
            }
        },
        "/health": _plain("health", "Whether the process lives", {"200": "It does."}),
        "/ready": _plain(
            "ready",
            "Whether requests can be served",
            {"200": "They can."},
            {"503": "The store fails, or the server stops."},
        ),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "tags": ["server"],
                "summary": "Figures for Prometheus",
                "description": "Needs a token with one of the scopes: read, trainer, admin.",
                "security": [{"token": []}],
                "responses": {
                    "200": {"description": "Figures.", "content": {MEDIA_TYPE: {"schema": _TEXT}}},
                    **_refusals({"503": "The store fails."}),
                },
            }
        },
    }
    return document


def _plain(name: str, summary: str, good: Mapping[str, str], bad: Mapping[str, str] | None = None) -> Schema:
    content = {"application/json": {"schema": {"type": "object"}}}
    responses = {status: {"description": told, "content": content} for status, told in good.items()}
    responses |= {status: {"description": told, "content": _ERROR} for status, told in (bad or {}).items()}
    return {
        "get": {"operationId": name, "tags": ["server"], "summary": summary, "security": [], "responses": responses}
    }


def _refusals(more: Mapping[str, str]) -> Schema:
    told = {
        "401": "No token that is known.",
        "403": "The token does not allow it.",
        "429": "Too much at a time.",
        **more,
    }
    return {status: {"description": said, "content": _ERROR} for status, said in told.items()}
