"""``CoterieEventListener``: recording in CrewAI's own idiom."""

from __future__ import annotations

from typing import Any

from crewai.events.base_event_listener import BaseEventListener

from coterie_crewai.recording import start_recording, stop_recording


class CoterieEventListener(BaseEventListener):  # type: ignore[misc, unused-ignore]
    """Records every crew, flow and agent of the process from the moment that it is made, until ``retire()``.

    Like all of CrewAI's listeners it is for the whole process. It takes events where they are emitted, not on the bus
    (``events.py`` says why), so it registers no handler there.
    """

    def setup_listeners(self, crewai_event_bus: Any) -> None:  # noqa: ARG002
        """Begin to record. CrewAI's base class calls it."""
        start_recording(self)

    def retire(self) -> None:
        """Stop recording, unless the instrumentor or another listener goes on."""
        stop_recording(self)
