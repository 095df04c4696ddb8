"""``OpenAIAgentsInstrumentor``: every run of the OpenAI Agents SDK in the process is recorded."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from wrapt import register_post_import_hook

from coterie.capture.faults import guarded

RUNNER_MODULE = "agents.run"
"""The SDK's module that has its runner."""


class OpenAIAgentsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Switches recording on and off. Agents, run configurations, hooks and trace processors of the user stay theirs.

    The SDK takes seconds to import: if the program has not imported it yet, recording waits until it does.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for this plugin to be of use."""
        return ("openai-agents >= 0.20",)

    def _instrument(self, **_: Any) -> None:
        global _on, _awaited
        _on = True
        if RUNNER_MODULE in sys.modules:
            _hold(sys.modules[RUNNER_MODULE])
        elif not _awaited:
            _awaited = True
            register_post_import_hook(_hold, RUNNER_MODULE)

    def _uninstrument(self, **_: Any) -> None:
        global _on
        _on = False
        if "coterie_openai_sdk.wrapping" in sys.modules:
            from coterie_openai_sdk import wrapping

            wrapping.release(OpenAIAgentsInstrumentor)


_on = False
_awaited = False
"""True once the import is waited for: such a wish cannot be taken back."""


@guarded
def _hold(module: ModuleType) -> None:
    # A folder of the user's own that is called ``agents`` is not the SDK.
    if _on and hasattr(module, "AgentRunner"):
        from coterie_openai_sdk import wrapping

        wrapping.hold(OpenAIAgentsInstrumentor)
