"""``AutoGenInstrumentor``: records every agent and team of the process."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from coterie_autogen import registering

AGENTCHAT = "autogen-core >= 0.6.4"
CLASSIC = "ag2 >= 0.9.10, < 1"


class AutoGenInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Wraps methods of the framework's classes and puts them back. Objects of the user's are not touched."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for this plugin to be of use: AutoGen, or where only that is there, classic AG2."""
        return (CLASSIC,) if registering.is_classic_installed() and not find_spec("autogen_core") else (AGENTCHAT,)

    def _instrument(self, **_: Any) -> None:
        registering.record_everything(True)

    def _uninstrument(self, **_: Any) -> None:
        registering.record_everything(False)
