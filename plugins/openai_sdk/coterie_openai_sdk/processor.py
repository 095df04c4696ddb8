"""``CoterieTraceProcessor``: the one-line way in, ``agents.add_trace_processor(CoterieTraceProcessor())``."""

from __future__ import annotations

import weakref
from typing import Any

from agents.tracing import Span, Trace, TracingProcessor

from coterie_openai_sdk import wrapping


class CoterieTraceProcessor(TracingProcessor):
    """Records the agents, tools and hand-offs of all runs for as long as the SDK holds it.

    Being added is what switches recording on; what is recorded does not come from the SDK's traces, so nothing is
    missed where tracing is disabled. It ends with ``shutdown()``, or when ``set_trace_processors`` drops it. Beside
    ``OpenAIAgentsInstrumentor``, or twice, everything is recorded once.
    """

    def __init__(self) -> None:
        key = object()
        wrapping.hold(key)
        self._release = weakref.finalize(self, wrapping.release, key)

    def on_trace_start(self, trace: Trace) -> None:
        """Nothing is read from traces."""

    def on_trace_end(self, trace: Trace) -> None:
        """Nothing is read from traces."""

    def on_span_start(self, span: Span[Any]) -> None:
        """Nothing is read from the SDK's spans."""

    def on_span_end(self, span: Span[Any]) -> None:
        """Nothing is read from the SDK's spans."""

    def shutdown(self) -> None:
        """Switch recording off, unless somebody else keeps it on."""
        self._release()

    def force_flush(self) -> None:
        """Nothing is held back."""
