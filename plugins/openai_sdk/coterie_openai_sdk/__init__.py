"""A team of agents records itself: the OpenAI Agents SDK plugin.

``coterie.instrument()`` finds ``OpenAIAgentsInstrumentor`` by its entry point. By hand:
``OpenAIAgentsInstrumentor().instrument()``, or in the SDK's own idiom
``agents.add_trace_processor(CoterieTraceProcessor())``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_openai_sdk.instrumentor import OpenAIAgentsInstrumentor as OpenAIAgentsInstrumentor
    from coterie_openai_sdk.processor import CoterieTraceProcessor as CoterieTraceProcessor

__all__ = ["CoterieTraceProcessor", "OpenAIAgentsInstrumentor"]


def __getattr__(name: str) -> Any:
    # The processor imports the SDK, which takes a while: only who asks for it pays.
    if name == "OpenAIAgentsInstrumentor":
        from coterie_openai_sdk.instrumentor import OpenAIAgentsInstrumentor

        return OpenAIAgentsInstrumentor
    if name == "CoterieTraceProcessor":
        from coterie_openai_sdk.processor import CoterieTraceProcessor

        return CoterieTraceProcessor
    raise AttributeError(f"module 'coterie_openai_sdk' has no attribute {name!r}")
