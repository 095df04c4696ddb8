"""Errors as a client gets them: a status, and ``{"error": {"type", "message"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from coterie.errors import CoterieError
from coterie.store import wire


class Refusal(Exception):
    """A request that the edge refuses before the store has seen it."""

    def __init__(self, status: int, message: str, *, fields: Sequence[Mapping[str, str]] = ()) -> None:
        """Refuse with a status of HTTP; ``fields`` names what did not fit, each with ``path`` and ``problem``."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields


def error_body(kind: str, message: str, fields: Sequence[Mapping[str, str]] = ()) -> bytes:
    """The body of an error. ``kind`` is the class of ``coterie.errors`` that the client raises."""
    error: dict[str, object] = {"type": kind, "message": message}
    if fields:
        error["fields"] = fields
    return orjson.dumps({"error": error}, default=str)


def answer_to(error: Exception) -> tuple[int, bytes]:
    """Status and body that tell an error of the edge or of the store.

    Raises:
        Exception: the error itself, if it is a fault of the server.
    """
    if isinstance(error, Refusal):
        return error.status, error_body("StoreError", error.message, error.fields)
    if isinstance(error, CoterieError):
        status = next((status for kind, status in wire.STATUS_OF.items() if isinstance(error, kind)), 400)
        return status, error_body(type(error).__name__, _sendable(str(error)))
    if isinstance(error, (OverflowError, UnicodeError)):
        message = f"A value cannot be stored or looked for: {error}. Nothing was changed."
        return 422, error_body("StoreError", _sendable(message))
    raise error


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
