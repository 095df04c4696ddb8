"""Whether the server lives, whether it can work, and its figures."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coterie.errors import CoterieError
from coterie_server.metrics import MEDIA_TYPE
from coterie_server.parts import parts_of
from coterie_server.tokens import Scope, require

logger = logging.getLogger("coterie.server")


async def health(_request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """The store can be read and written, and the server is not about to stop. Else 503."""
    parts = parts_of(request.scope)
    if parts.stopping:
        return _not_ready("the server is about to stop")
    try:
        await parts.store.check()
    except CoterieError as error:
        logger.warning("Not ready: %s", error)
        return _not_ready("the store cannot be read and written now; the server's log tells why")
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    parts = parts_of(request.scope)
    if not parts.settings.metrics_without_token:
        require(request.scope, Scope.READ)
    parts.metrics.waiting.set(parts.drain.waiting)
    return Response(await parts.metrics.text(parts.store), media_type=MEDIA_TYPE)


def _not_ready(why: str) -> Response:
    return JSONResponse({"error": {"type": "NotReadyError", "message": f"Not ready: {why}"}}, status_code=503)


ROUTES = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
