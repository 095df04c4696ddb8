"""What listens to the programs: nothing, ours, and the peers', each exporting to a counter in the same process.

No exporter of a peer's own is ever made: AgentOps' instrumentors are switched on one by one with our provider, without
``agentops.init()``, which is what signs in to its service.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

OPENINFERENCE = {
    "langchain": "openinference.instrumentation.langchain:LangChainInstrumentor",
    "autogen": "openinference.instrumentation.autogen_agentchat:AutogenAgentChatInstrumentor",
    "crewai": "openinference.instrumentation.crewai:CrewAIInstrumentor",
    "openai_sdk": "openinference.instrumentation.openai_agents:OpenAIAgentsInstrumentor",
    "openai": "openinference.instrumentation.openai:OpenAIInstrumentor",
}
AGENTOPS = {
    "langchain": "agentops.instrumentation.agentic.langgraph.instrumentation:LanggraphInstrumentor",
    "autogen": "agentops.instrumentation.providers.openai.instrumentor:OpenaiInstrumentor",
    "crewai": "agentops.instrumentation.agentic.crewai.instrumentation:CrewaiInstrumentor",
    "openai_sdk": "agentops.instrumentation.agentic.openai_agents.instrumentor:OpenAIAgentsInstrumentor",
    "openai": "agentops.instrumentation.providers.openai.instrumentor:OpenaiInstrumentor",
}
"""What ``agentops.init()`` chooses: a framework's own instrumentor where it has one, else the OpenAI SDK's."""

NOTHING, NOTHING_AGAIN = "nothing", "nothing again"
"""The uninstrumented program, and the same once more: what it seems to cost is the measurement's error."""
COTERIE, ATTEMPT = "coterie", "coterie, attempt"
"""Ours with the user's own provider, and within attempts of mode train."""
PEERS = ("openinference", "openinference + openai", "agentops")

MADE_BEFORE = {("langchain", "agentops")}
"""(Framework, instrumentor) whose program must be made before it is switched on: AgentOps wraps the nodes that a LangGraph
graph is given, and those of ``create_agent`` do not bear it.
"""


def instrumentors_for(framework: str) -> Sequence[str]:
    """What is measured for a framework."""
    peers = [peer for peer in PEERS if not (framework == "openai" and "+" in peer)]
    return [NOTHING, NOTHING_AGAIN, COTERIE, ATTEMPT, *peers]


class Counter(SpanExporter):
    """Takes spans as an exporter, counts them, and keeps them only while it is asked to."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[ReadableSpan] | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Count."""
        self.count += len(spans)
        if self.kept is not None:
            self.kept.extend(spans)
        return SpanExportResult.SUCCESS


def switch_on(name: str, framework: str) -> Counter:
    """Switch one of them on. The framework is imported already."""
    counter = Counter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(counter))
    if name in (COTERIE, ATTEMPT):
        import coterie

        if name == COTERIE:
            trace.set_tracer_provider(provider)
        others = [f"coterie_{other}" for other in OPENINFERENCE if other != framework]
        os.environ["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = ",".join(others)
        coterie.instrument()
    elif name.startswith("openinference"):
        trace.set_tracer_provider(provider)
        _instrument(OPENINFERENCE[framework], provider)
        if "+" in name:
            _instrument(OPENINFERENCE["openai"], provider)
    elif name == "agentops":
        trace.set_tracer_provider(provider)
        _instrument(AGENTOPS[framework], provider)
    return counter


def session(name: str) -> AbstractContextManager[object]:
    """The span that is open while programs run with AgentOps: ``agentops.init()`` begins one, and its instrumentor of
    LangGraph fails outside any.
    """
    return trace.get_tracer("session").start_as_current_span("session") if name == "agentops" else nullcontext()


def _instrument(place: str, provider: TracerProvider) -> None:
    module, _, name = place.partition(":")
    instrumentor = getattr(importlib.import_module(module), name)()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    if not instrumentor.is_instrumented_by_opentelemetry:
        raise RuntimeError(f"{place} did not switch on.")
