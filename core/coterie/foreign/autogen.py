"""AutoGen's own spans: agents and tools by the GenAI conventions, and the messages that its runtime carries."""

from __future__ import annotations

from coterie.episodes import EdgeKind
from coterie.foreign.attributes import mapping_of, text_of
from coterie.foreign.marks import with_edge
from coterie.vocabulary import Span

NAME = "autogen"

_RECIPIENT = "recipient_agent_type"


def recognises(span: Span) -> bool:
    """True for a message that AutoGen's runtime delivered."""
    return _RECIPIENT in span.attributes and "message" in span.attributes


def translated(span: Span) -> Span:
    """The span with the hand-off or message that it delivers told on it.

    Every participant gets every answer; a hand-off counts once, where the manager of the group gets it.
    """
    delivered = mapping_of(span.attributes.get("message"))
    to_manager = str(span.attributes.get("recipient_agent_class", "")).endswith("Manager")
    if to_manager:
        message = mapping_of(delivered.get("message"))
        source, target = text_of(message.get("source")), text_of(message.get("target"))
        if message.get("type") == "HandoffMessage" and source and target:
            return with_edge(span, EdgeKind.HANDOFF, source, target, span.start_ns)
        return span
    answer = mapping_of(mapping_of(delivered.get("response")).get("chat_message"))
    source, target = text_of(answer.get("source")), str(span.attributes[_RECIPIENT]).rpartition("_")[0]
    if source and target and source != target and answer.get("type") != "HandoffMessage":
        return with_edge(span, EdgeKind.MESSAGE, source, target, span.start_ns)
    return span
