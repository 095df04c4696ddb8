"""``OpenAIAgentsInstrumentor``: every run of the OpenAI Agents SDK in the process is recorded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]


class OpenAIAgentsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Switches recording on and off. Agents, run configurations, hooks and trace processors of the user stay theirs."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for this plugin to be of use."""
        return ("openai-agents >= 0.20",)

    def _instrument(self, **_: Any) -> None:
        from coterie_openai_sdk import wrapping

        wrapping.hold(OpenAIAgentsInstrumentor)

    def _uninstrument(self, **_: Any) -> None:
        from coterie_openai_sdk import wrapping

        wrapping.release(OpenAIAgentsInstrumentor)
