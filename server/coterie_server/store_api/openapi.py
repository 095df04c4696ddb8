"""The OpenAPI description of the routes, from the same types that check the requests."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from coterie_server.store_api.listings import MEDIA_TYPE
from coterie_server.store_api.requests import Reader
from coterie_server.store_api.routes import ROUTES, Route, item_of
from coterie_server.tokens import ANY, IMPLIED, Scope

Schema = dict[str, Any]


def describe(document: Schema) -> Schema:
    """Add the store's routes and types to an OpenAPI document, and give it."""
    kinds: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for route in ROUTES:
        if route.reader is not None:
            kinds.append((route.reader.name, "validation", route.reader.adapter))
        if route.answer is not None:
            name = _answer_name(route)
            kinds.append((name, "validation", Reader[Any](route.answer, name).adapter))
    schemas, shared = TypeAdapter.json_schemas(kinds, ref_template="#/components/schemas/{model}")
    # The request and the answer of a route stand in the route, what they are made of beside them.
    found = {key: shared["$defs"].pop(key, schema) for (key, _mode), schema in schemas.items()}
    paths = document.setdefault("paths", {})
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, found)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(shared["$defs"] | {"Error": _ERROR})
    components.setdefault("responses", {}).update(_RESPONSES)
    components.setdefault("securitySchemes", {}).setdefault("token", {"type": "http", "scheme": "bearer"})
    return document


def _answer_name(route: Route) -> str:
    return f"{route.handle.__name__}_answer"


def _operation(route: Route, schemas: Mapping[str, Schema]) -> Schema:
    told = inspect.getdoc(route.handle) or ""
    operation: Schema = {
        "operationId": route.handle.__name__,
        "tags": [route.path.split("/")[2] if route.path.count("/") > 1 else "store"],
        "summary": told.split("\n", 1)[0].split(". ", 1)[0].rstrip("."),
        "description": _text(route, told),
        "security": [{"token": []}],
        "responses": {**_success(route, schemas), **_refusals(route)},
    }
    if route.reader is not None and route.query:
        operation["parameters"] = _parameters(schemas[route.reader.name])
    elif route.reader is not None:
        content = {"application/json": {"schema": schemas[route.reader.name]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _text(route: Route, told: str) -> str:
    lines = [told]
    if route.paged:
        lines.append(
            "Gives a page, and with it the `cursor` to pass as `after` for the next one; the last page has none. With "
            f"the header `Accept: {MEDIA_TYPE.decode()}` it gives all that follow instead, one JSON record a line."
        )
    if ANY not in route.scopes:
        lines.append("Needs a token with one of the scopes: " + ", ".join(_allowing(route)) + ".")
    return "\n\n".join(lines)


def _allowing(route: Route) -> list[Scope]:
    return [scope for scope in Scope if {scope, *IMPLIED[scope]} & set(route.scopes)]


def _success(route: Route, schemas: Mapping[str, Schema]) -> Schema:
    if route.answer is None:
        return {"204": {"description": "Done, and on disk."}}
    schema = schemas[_answer_name(route)]
    if route.path == "/v1/rollouts/ended":
        return {"200": {"description": "A stream of events.", "content": {"text/event-stream": {"schema": schema}}}}
    content: Schema = {"application/json": {"schema": schema}}
    if route.paged:
        lines = {"type": "string", "description": f"One {item_of(route.answer).__name__} a line."}
        content[MEDIA_TYPE.decode()] = {"schema": lines}
    return {"200": {"description": "Done.", "content": content}}


def _refusals(route: Route) -> Schema:
    statuses = ["400", "401", "403", "404", "422", "429", "503"]
    if not route.query:
        statuses += ["413"]
    if route.path == "/v1/attempts/finish":
        statuses += ["409"]
    return {status: {"$ref": f"#/components/responses/{_RESPONSE_NAMES[status]}"} for status in sorted(statuses)}


def _parameters(schema: Schema) -> list[Schema]:
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _without_null(entry),
            **({"description": entry["description"]} if "description" in entry else {}),
        }
        for name, entry in schema["properties"].items()
    ]


def _without_null(schema: Schema) -> Schema:
    """A parameter is left out, never null."""
    schema = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        schema = {key: value for key, value in schema.items() if key != "anyOf"} | options[0]
    return schema


_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string", "description": "The class of `coterie.errors`, such as `NotFoundError`."},
                "message": {"type": "string", "description": "What was wrong, where, and what to do."},
            },
        }
    },
}
_RESPONSE_NAMES = {
    "400": "Refused",
    "401": "NoToken",
    "403": "WrongScope",
    "404": "NotFound",
    "409": "LeaseLost",
    "413": "TooLarge",
    "422": "DoesNotFit",
    "429": "TooMany",
    "503": "Unavailable",
}
_TOLD = {
    "400": "The store cannot do this: `StoreError`, `ConfigError` or `RewardError`. Nothing was changed.",
    "401": "No token, or an unknown one.",
    "403": "The token lacks the scope.",
    "404": "`NotFoundError`: names what is missing. Nothing was changed.",
    "409": "`LeaseLostError`: the attempt ended otherwise meanwhile. Its spans were kept.",
    "413": "The body is larger than the server takes.",
    "422": "The body or a parameter does not fit its schema. Nothing was changed.",
    "429": "Too many requests; `Retry-After` says when to come again.",
    "503": "`StoreUnavailableError`: the database cannot be used now. Nothing was changed; try again.",
}
_RESPONSES: Schema = {
    name: {
        "description": _TOLD[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for status, name in _RESPONSE_NAMES.items()
}
