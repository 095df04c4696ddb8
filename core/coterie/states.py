"""``coterie.state``: names the state of the environment in which LLM calls are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST_KEY = 120
"""Characters of a key that is recorded as it is; a longer one is recorded as its digest."""

_state: ContextVar[str | None] = ContextVar("coterie_state", default=None)


@contextmanager
def state(key: str) -> Iterator[None]:
    """Say in which state of its environment the calls of a block are made: a page, a room, what the agent observes.

    Calls of the same role under the same key can be compared with each other, within a rollout and across the rollouts
    of a task, which the advantages ``state`` and ``state_history`` do. The inner of two blocks holds. Without
    ``coterie.instrument()`` it does nothing.

    Args:
        key: Equal for equal states, and only for them. It may be the whole observation: what is longer than 120
            characters, or must not be recorded as it is, is recorded as a digest.
    """
    token = _state.set(key)
    try:
        yield
    finally:
        _state.reset(token)


def recorded_state(*, exact: bool) -> str | None:
    """The present state's key as a span carries it; None outside any ``state`` block.

    Args:
        exact: False where texts may not be recorded as they are.
    """
    key = _state.get()
    if key is None or (exact and len(key) <= LONGEST_KEY):
        return key
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()[:32]
