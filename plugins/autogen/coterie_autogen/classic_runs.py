"""What is under way in classic AG2: chats, and agents that give a reply.

Agents of a chat call each other: a reply is generated, sent, received, and answered by the next reply. So an activation
is the generating of one reply, and a group chat's manager, whose reply is the whole chat, is a chat here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span

from coterie.episodes import EdgeKind
from coterie.roles import Acting, Identity, acting_as
from coterie.structure import add_edge, end, start_agent
from coterie_autogen.handoffs import add_delegation, add_messages


@dataclass(slots=True, eq=False)
class Chat:
    """One chat of two agents or of a group."""

    span: Span
    around: Acting | None
    """Who has the chat held, with its span: None for the outermost."""
    delegated_by: Reply | None = None
    """The agent that has it held, until one in it speaks."""
    between: tuple[Any, Any] | None = None
    """The agents that began it, of a chat that one began with another."""
    words: list[str] = field(default_factory=list)
    """Who spoke, in order."""
    heard: dict[str, int] = field(default_factory=dict)
    """Agent to how many of the words have reached it."""
    askers: dict[str, Reply] = field(default_factory=dict)
    """Tool call id, and tool name, to the reply that asked for it (last)."""
    handed_over: dict[str, str] = field(default_factory=dict)
    """Agent to the one that handed over to it, until it speaks."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """In the chat, while no agent of it speaks."""
        with inside(self, self.around):
            yield

    def saw(self, item: Any) -> None:
        """Its messages are seen at its agents."""

    def ended(self, error: BaseException | None) -> None:
        """The chat is over."""
        end(self.span, error)


@dataclass(slots=True, eq=False)
class Reply:
    """One activation of an agent. It gets a span when it calls a model: one that only runs tools for another has none."""

    identity: Identity
    agent: Any
    chat: Chat | None
    parent: Span | None
    selecting: bool = False
    """True for a group chat's manager while it has a model choose who speaks next."""
    span: Span | None = None

    def open(self) -> Span:
        """Its span, started now if it has none yet."""
        if self.span is None:
            self.span = start_agent(self.identity, parent=self.parent)
            if self.chat is not None:
                self._hear(self.span, self.chat)
        return self.span

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the agent generates its reply."""
        with inside(self, Acting(self.identity, self.span or self.parent)):
            yield

    def saw(self, item: Any) -> None:
        """The reply: the tools that it asks for may be run by another agent."""
        if self.chat is None or self.span is None or self.selecting:
            return
        self.chat.words.append(self.identity.agent)
        for call in item.get("tool_calls") or () if isinstance(item, dict) else ():
            self.chat.askers[call["function"]["name"]] = self
            if call.get("id"):
                self.chat.askers[call["id"]] = self

    def ended(self, error: BaseException | None) -> None:
        """The reply is there."""
        if error is not None:
            self.open()
        if self.span is not None:
            end(self.span, error)

    def _hear(self, span: Span, chat: Chat) -> None:
        name = self.identity.agent
        new = dict.fromkeys(chat.words[chat.heard.get(name, 0) :])
        chat.heard[name] = len(chat.words)
        source = chat.handed_over.pop(name, None)
        if source is not None:
            new.pop(source, None)
            add_edge(span, EdgeKind.HANDOFF, source, name)
        add_messages(span, new, name)
        if chat.delegated_by is not None:
            add_delegation(chat.delegated_by.open(), chat.delegated_by.identity.agent, name)
            chat.delegated_by = None


_frame: ContextVar[Chat | Reply | None] = ContextVar("coterie_autogen_classic_frame", default=None)


def current_frame() -> Chat | Reply | None:
    """The innermost chat or reply in this context."""
    return _frame.get()


def current_chat() -> Chat | None:
    """The innermost chat."""
    frame = _frame.get()
    return frame.chat if isinstance(frame, Reply) else frame


@contextmanager
def inside(frame: Chat | Reply, acting: Acting | None) -> Iterator[None]:
    """Set what is under way in this context."""
    token = _frame.set(frame)
    try:
        if acting is None:
            yield
        else:
            with acting_as(acting.identity, acting.span):
                yield
    finally:
        _frame.reset(token)
