"""CrewAI's events of tools and LLM calls, taken where they are emitted.

``CrewAIEventsBus.emit`` is called in the very context of the tool or LLM call. A handler registered on the bus is
called on a pool thread instead, late, with a copy of the context; and the ``before_llm_call`` hooks of an agent are
those that were registered when its executor was made, so that neither can say in time who calls. Hence ``emit`` itself
is wrapped; what it does is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import note_fault
from coterie_crewai import tools, uncaptured
from coterie_crewai.patches import patches

_TAKEN: dict[str, Callable[[Any, Any], None]] = {
    "tool_usage_started": tools.tool_started,
    "tool_usage_finished": tools.tool_finished,
    "tool_usage_error": tools.tool_failed,
    "llm_call_started": uncaptured.call_started,
    "llm_call_completed": uncaptured.call_completed,
    "llm_call_failed": uncaptured.call_failed,
}


def wrap_events() -> None:
    """Take events as they are emitted."""
    from crewai.events.event_bus import CrewAIEventsBus

    patches.before(CrewAIEventsBus, "emit", _emitted)


def _emitted(source: Any, event: Any) -> None:
    take = _TAKEN.get(getattr(event, "type", ""))
    if take is None or not is_instrumentation_enabled():
        return
    try:
        take(source, event)
    except Exception:  # noqa: BLE001 - it is called in the midst of the user's run
        note_fault(f"CrewAI's event {event.type} could not be recorded")
