"""``CrewAIInstrumentor``: every crew, flow and agent of the process, with no change to its code."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from coterie.capture.faults import note_fault


class CrewAIInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Switches recording on and off. Who does not use CrewAI does not wait for its import, which takes seconds."""

    _on = False
    _hooked = False

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for this plugin to be of use."""
        return ("crewai >= 1.15",)

    def _instrument(self, **_: Any) -> None:
        self._on = True
        if self._hooked:
            self._imported()
        else:
            self._hooked = True
            wrapt.register_post_import_hook(self._imported, "crewai")

    def _uninstrument(self, **_: Any) -> None:
        self._on = False
        if "coterie_crewai.recording" in sys.modules:
            from coterie_crewai.recording import stop_recording

            stop_recording(self)

    def _imported(self, _: Any = None) -> None:
        if not self._on or "crewai" not in sys.modules:
            return
        try:
            from coterie_crewai.recording import start_recording

            start_recording(self)
        except Exception:  # noqa: BLE001 - the program's import goes on
            note_fault("CrewAI could not be hooked, so its agents go unnamed")
