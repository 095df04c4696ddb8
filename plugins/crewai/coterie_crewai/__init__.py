"""A crew of agents records itself: the CrewAI plugin.

``coterie.instrument()`` finds ``CrewAIInstrumentor`` by its entry point. By hand:
``CrewAIInstrumentor().instrument()``, or CrewAI's own way, ``CoterieEventListener()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_crewai.instrumentor import CrewAIInstrumentor as CrewAIInstrumentor
    from coterie_crewai.listener import CoterieEventListener as CoterieEventListener

__all__ = ["CoterieEventListener", "CrewAIInstrumentor"]


def __getattr__(name: str) -> Any:
    # The listener's base class imports crewai, which takes seconds: only who asks for it pays.
    if name == "CrewAIInstrumentor":
        from coterie_crewai.instrumentor import CrewAIInstrumentor

        return CrewAIInstrumentor
    if name == "CoterieEventListener":
        from coterie_crewai.listener import CoterieEventListener

        return CoterieEventListener
    raise AttributeError(f"module 'coterie_crewai' has no attribute {name!r}")
