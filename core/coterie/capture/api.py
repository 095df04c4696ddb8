"""Which of the OpenAI-compatible APIs a request is for."""

from __future__ import annotations

from enum import StrEnum


class Api(StrEnum):
    """An API that answers with a model's words; the value is its path below the base URL."""

    CHAT = "/chat/completions"
    """Chat Completions."""
    RESPONSES = "/responses"
    """Responses."""
    COMPLETIONS = "/completions"
    """Legacy Completions: a prompt in, a text out."""

    @property
    def has_messages(self) -> bool:
        """True when a request has a place for a system message."""
        return self is not Api.COMPLETIONS


def api_of(method: str, url: str) -> Api | None:
    """The API of a request, or None when it is no LLM call. ``url`` may be a path or absolute."""
    if method.lower() != "post":
        return None
    path = url.partition("?")[0]
    return next((api for api in Api if path.endswith(api)), None)
