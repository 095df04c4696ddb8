"""What people and generators of clients look at: ``/docs``, and ``/openapi.json`` that it draws.

Both are made when they are first asked for, in a thread: few servers are ever asked, and starting must not wait for it.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coterie_server.described import describe_the_rest
from coterie_server.store_api.openapi import describe

DOCS, DOCUMENT = "/docs", "/openapi.json"
_TITLE = "Coterie"


def docs(_request: Request) -> Response:
    """The API as a page to read and try."""
    from fastapi.openapi.docs import get_swagger_ui_html  # takes long to import, for this page alone

    return get_swagger_ui_html(openapi_url=DOCUMENT, title=f"{_TITLE} - Swagger UI")


def document(_request: Request) -> Response:
    """The OpenAPI description of all routes."""
    return Response(_document(), media_type="application/json")


@cache
def _document() -> bytes:
    empty = {"openapi": "3.1.0", "info": {"title": _TITLE, "version": version("coterie")}, "paths": {}}
    return orjson.dumps(describe_the_rest(describe(empty)))


ROUTES = [Route(DOCS, docs), Route(DOCUMENT, document)]
