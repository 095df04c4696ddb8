"""Requests that the server refuses: a status, and ``{"error": {"type", "message"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

Headers = Sequence[tuple[bytes, bytes]]


class Refused(Exception):
    """A request that is answered with an error before anything was done. The edge turns it into the answer."""

    def __init__(self, status: int, kind: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Refuse.

        Args:
            status: of HTTP, 4xx or 503.
            kind: the ``type`` in the body, by which programs tell errors apart.
            message: what is wrong and what to do.
            headers: sent with it.
        """
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers: Headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]


def error_body(kind: str, message: str) -> bytes:
    """The body of an error."""
    return orjson.dumps({"error": {"type": kind, "message": message.encode("utf-8", "backslashreplace").decode()}})


def unauthorized(message: str) -> Refused:
    """There is no token, or not one that the server knows."""
    return Refused(401, "UnauthorizedError", message, headers={"www-authenticate": "Bearer"})


def forbidden(message: str) -> Refused:
    """The token does not allow it."""
    return Refused(403, "ForbiddenError", message)


def too_many(message: str, retry_after_seconds: float) -> Refused:
    """More than the limits allow; good again after a while."""
    return Refused(
        429, "TooManyRequestsError", message, headers={"retry-after": str(max(1, round(retry_after_seconds)))}
    )


def does_not_fit(problem: str) -> Refused:
    """A body or a query does not fit its schema; ``problem`` is a sentence that names the field."""
    return Refused(422, "StoreError", f"{problem} Nothing was changed.")


def body_too_large(limit: int) -> Refused:
    """The body is larger than the limit."""
    return Refused(
        413,
        "BodyTooLargeError",
        f"The body is larger than {limit} bytes. Send less at once, or raise limits.body_bytes of the server.",
    )
