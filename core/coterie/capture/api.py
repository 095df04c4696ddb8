"""Which of the APIs of model providers a request is for."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache


class Api(StrEnum):
    """An API that answers with a model's words; the value is its path below the base URL."""

    CHAT = "/chat/completions"
    """Chat Completions."""
    RESPONSES = "/responses"
    """Responses."""
    COMPLETIONS = "/completions"
    """Legacy Completions: a prompt in, a text out."""

    MESSAGES = "/messages"
    """Anthropic's Messages."""

    @property
    def has_messages(self) -> bool:
        """True when a request has a place for a system message."""
        return self is not Api.COMPLETIONS


@lru_cache(maxsize=256)
def api_of(method: str, url: str, among: tuple[Api, ...]) -> Api | None:
    """Which API of an SDK a request is for, or None when it is no LLM call. ``url`` may be a path or absolute."""
    if method.lower() != "post":
        return None
    path = url.partition("?")[0]
    return next((api for api in among if path.endswith(api)), None)
