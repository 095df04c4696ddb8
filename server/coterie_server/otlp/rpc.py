"""OTLP over gRPC: ``TraceService/Export``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from coterie.errors import ConfigError, CoterieError, StoreUnavailableError
from coterie.vocabulary import new_id
from coterie_server.otlp.http import response_of
from coterie_server.otlp.intake import take
from coterie_server.parts import Parts
from coterie_server.rates import Rates
from coterie_server.redaction import redacted
from coterie_server.refusals import Refused, forbidden, unauthorized
from coterie_server.tokens import Scope

logger = logging.getLogger("coterie.server")

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@asynccontextmanager
async def grpc_server(parts: Parts, port: int) -> AsyncIterator[int]:
    """Take spans over gRPC at a port while the block runs; gives the port, which 0 leaves open.

    Raises:
        ConfigError: the port cannot be used.
    """
    settings = parts.settings
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.limits.body_bytes),
            ("grpc.max_metadata_size", settings.limits.header_bytes),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ],
        maximum_concurrent_rpcs=settings.limits.requests_at_once,
    )
    server.add_generic_rpc_handlers([_handlers(parts)])
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"{host}:{port}"
    try:
        if settings.tls_cert is None:
            taken = server.add_insecure_port(where)
        else:
            chain = settings.tls_cert.read_bytes()
            key = settings.tls_key.read_bytes() if settings.tls_key else chain
            taken = server.add_secure_port(where, grpc.ssl_server_credentials([(key, chain)]))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"--grpc-port: the server cannot listen at {where}: {error}") from error
    await server.start()
    try:
        yield taken
    finally:
        await server.stop(settings.drain_seconds)


def _handlers(parts: Parts) -> grpc.GenericRpcHandler:
    rates = Rates(parts.settings.limits)

    async def export(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> ExportTraceServiceResponse:
        try:
            caller_id = _caller_id(parts, dict(context.invocation_metadata() or ()))
            rates.enter(caller_id)
            try:
                return response_of(await take(parts, body))
            finally:
                rates.leave(caller_id)
        except Refused as refused:
            await context.abort(_CODES.get(refused.status, grpc.StatusCode.INVALID_ARGUMENT), refused.message)
        except StoreUnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, redacted(str(error)))
        except CoterieError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, redacted(str(error)))
        except Exception:
            number = new_id("fault")
            logger.exception("%s: gRPC Export", number)
            await context.abort(grpc.StatusCode.INTERNAL, f"A fault of the server; its log tells more under {number}.")
        raise AssertionError("abort raises")

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            # The body stays bytes: it is read as HTTP's is.
            "Export": grpc.unary_unary_rpc_method_handler(
                export, response_serializer=ExportTraceServiceResponse.SerializeToString
            )
        },
    )


def _caller_id(parts: Parts, metadata: dict[str, Any]) -> str:
    kind, _, token = str(metadata.get("authorization", "")).partition(" ")
    if kind.lower() != "bearer" or not token:
        raise unauthorized("No token. Send `authorization: Bearer TOKEN` as metadata.")
    caller = parts.tokens.caller(token.strip())
    if caller is None:
        raise unauthorized("This token is unknown, expired or revoked.")
    if Scope.AGENT not in caller.allowed:
        raise forbidden(f"The token {caller.name!r} does not allow this: it takes one of scope agent.")
    return caller.id


_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.UNAVAILABLE,
}
