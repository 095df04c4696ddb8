"""Refusals: errors that the gateway itself answers, in the shape that the client's SDK expects."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import orjson


class Dialect(StrEnum):
    """Whose API the client speaks."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def dialect_of(path: str) -> Dialect:
    """What a client that asks for this path speaks."""
    return Dialect.ANTHROPIC if path.endswith("/messages") else Dialect.OPENAI


def in_clients_form(path: str, status: int, message: str) -> bytes:
    """The body of an error that what stands around the gateway answers."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Refusal(status, kind, message).body(dialect_of(path))


class Refusal(Exception):
    """A request that the gateway does not pass on, or cannot."""

    def __init__(
        self, status: int, kind: str, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Refuse.

        Args:
            status: of HTTP.
            kind: OpenAI's ``type``.
            message: what is wrong, and what to do.
            code: OpenAI's ``code``, by which programs tell errors apart.
            headers: sent with it.
        """
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.headers = dict(headers or {})

    def body(self, dialect: Dialect) -> bytes:
        """The answer's body."""
        if dialect is Dialect.ANTHROPIC:
            kind = _ANTHROPIC_KINDS.get(self.status, "api_error")
            return orjson.dumps({"type": "error", "error": {"type": kind, "message": self.message}})
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self, dialect: Dialect) -> bytes:
        """The same as the last event of a stream that broke off."""
        name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
        return name + b"data: " + self.body(dialect) + b"\n\n"


def bad_request(message: str, *, code: str | None = None, status: int = 400) -> Refusal:
    """The client's fault."""
    return Refusal(status, "invalid_request_error", message, code=code)


def unavailable(message: str, *, code: str, status: int = 503, retry_after: float | None = None) -> Refusal:
    """Nobody's fault; later it may work."""
    headers = {"retry-after": str(max(1, round(retry_after)))} if retry_after is not None else {}
    return Refusal(status, "server_error", message, code=code, headers=headers)


def exhausted(message: str) -> Refusal:
    """A budget is used up: the SDKs are told that trying again is of no use."""
    return Refusal(429, "insufficient_quota", message, code="budget_exhausted", headers={"x-should-retry": "false"})


ERROR_CLASSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
"""Status → the class that the SDKs raise for it, and so what a span in process has as its ``error.type``."""


def error_class(status: int) -> str:
    """The class of an answer's error."""
    return ERROR_CLASSES.get(status, "InternalServerError" if status >= 500 else "APIStatusError")


_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
