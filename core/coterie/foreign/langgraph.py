"""What LangChain and LangGraph tell every tracer: the acting agent in a run's metadata, a hand-off in a tool's result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coterie.foreign.attributes import list_of, mapping_of, text_of
from coterie.vocabulary import JSON

_INNER_NODES = frozenset({"agent", "model", "call_model", "tools"})
"""What the prebuilt agents call their own nodes: no agent's name."""

CONTROL_FLOW = frozenset({"ParentCommand", "GraphInterrupt", "GraphBubbleUp", "NodeInterrupt"})
"""LangGraph's exceptions that move control and are no errors."""


def agent_in(metadata: Mapping[str, JSON]) -> str | None:
    """The agent that a run belongs to: the name given to ``create_agent``, else the innermost node that is no part of one."""
    named = text_of(metadata.get("lc_agent_name"))
    if named:
        return named
    place = text_of(metadata.get("langgraph_checkpoint_ns")) or text_of(metadata.get("langgraph_node")) or ""
    nodes = [segment.partition(":")[0] for segment in place.split("|")]
    return next((node for node in reversed(nodes) if node and node not in _INNER_NODES), None)


def goto_targets(result: JSON) -> Iterator[str]:
    """The agents that a tool's result hands control to: a ``Command`` to the parent graph."""
    command = mapping_of(result)
    command = mapping_of(command.get("output")) or command
    if command.get("graph") != "__parent__":
        return
    goto = command.get("goto")
    for target in [goto] if isinstance(goto, str | Mapping) else list_of(goto):
        name = text_of(target) or text_of(mapping_of(target).get("node"))
        if name:
            yield name


def tool_output(result: JSON) -> tuple[JSON, str | None]:
    """A tool's result and its call id, taken out of the message that LangChain wraps it in, or out of a ``Command``'s.

    Any other result comes back as it is.
    """
    outer = mapping_of(result)
    outer = mapping_of(outer.get("output")) or outer
    written = [outer, *list_of(mapping_of(outer.get("update")).get("messages"))]
    messages = [message for one in written if (message := _tool_message(mapping_of(one)))]
    if not messages:
        return result, None
    return messages[-1].get("content"), text_of(messages[-1].get("tool_call_id"))


def _tool_message(written: Mapping[str, JSON]) -> Mapping[str, JSON] | None:
    message = mapping_of(written.get("data")) or mapping_of(written.get("kwargs")) or written
    return message if message.get("type") == "tool" and "content" in message else None
