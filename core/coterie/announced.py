"""What a plugin knows about the LLM call that is about to be made, handed to capture through a ContextVar.

A framework's callback fires just before its SDK sends the request, in the same context. The plugin announces who calls
and under which span; capture takes the announcement up when the request leaves, and says so, so that the plugin knows
whether the call was seen on the wire or must be recorded from the callback alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.trace import Span

from coterie.roles import Identity


@dataclass(slots=True, eq=False)
class AnnouncedCall:
    """One LLM call as its framework announced it."""

    identity: Identity
    parent: Span | None = None
    """The span to hang the call under; None means the current one."""
    captured: bool = False
    """Set by capture when it records the call."""
    ended: bool = False
    """Set by the plugin when the framework says that the call is over: later requests in this context are not it."""


_announced: ContextVar[AnnouncedCall | None] = ContextVar("coterie_announced", default=None)


def announce(call: AnnouncedCall) -> None:
    """Announce a call in the present context."""
    _announced.set(call)


@contextmanager
def announcing(call: AnnouncedCall) -> Iterator[None]:
    """Announce a call within the block alone, for a plugin that wraps the call itself."""
    token = _announced.set(call)
    try:
        yield
    finally:
        _announced.reset(token)


def announced_call() -> AnnouncedCall | None:
    """The call announced in the present context and not ended yet, or None."""
    call = _announced.get()
    return None if call is None or call.ended else call
