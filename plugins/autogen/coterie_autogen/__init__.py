"""A team of agents records itself: the AutoGen plugin, for ``autogen-agentchat`` and for the classic ``ag2<1``.

``coterie.instrument()`` finds ``AutoGenInstrumentor`` by its entry point. By hand:
``AutoGenInstrumentor().instrument()`` for every agent and team of the process, or ``register(agent_or_team)`` for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_autogen.instrumentor import AutoGenInstrumentor as AutoGenInstrumentor
    from coterie_autogen.registering import register as register
    from coterie_autogen.registering import unregister as unregister

__all__ = ["AutoGenInstrumentor", "register", "unregister"]


def __getattr__(name: str) -> Any:
    # OpenTelemetry's instrumentor and the framework's modules take a while: only who asks for them pays.
    if name == "AutoGenInstrumentor":
        from coterie_autogen.instrumentor import AutoGenInstrumentor

        return AutoGenInstrumentor
    if name in ("register", "unregister"):
        from coterie_autogen import registering

        return getattr(registering, name)
    raise AttributeError(f"module 'coterie_autogen' has no attribute {name!r}")
