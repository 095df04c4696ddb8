"""Classic AG2 (``ag2<1``, package ``autogen``): which methods are wrapped, and what is read from their calls."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span

from coterie.announced import AnnouncedCall, announcing
from coterie.episodes import EdgeKind
from coterie.roles import Acting, Identity, child_identity, current_acting
from coterie.structure import mark_tool_as_edge, start_tool, start_workflow
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import JSON
from coterie_autogen import runs
from coterie_autogen.classic_runs import Chat, Reply, current_chat, current_frame
from coterie_autogen.registering import is_recorded
from coterie_autogen.runs import ToolRun
from coterie_autogen.watching import Watch, beginning, watched_call, watched_sync_call
from coterie_autogen.wrapping import Make, Wrappers


def install(wrappers: Wrappers) -> None:
    """Wrap the methods through which every chat goes, also those of classes that the user defines."""
    autogen: Any = import_module("autogen")
    wrappers.wrap_family(
        autogen.ConversableAgent,
        {
            "initiate_chat": _plain(_begin_chat),
            "a_initiate_chat": _awaited(_begin_chat),
            "generate_reply": _plain(_begin_reply),
            "a_generate_reply": _awaited(_begin_reply),
            "execute_function": _plain(_begin_tool),
            "a_execute_function": _awaited(_begin_tool),
        },
    )
    wrappers.wrap_family(
        autogen.GroupChat,
        {"_auto_select_speaker": _plain(_begin_selecting), "a_auto_select_speaker": _awaited(_begin_selecting)},
    )
    wrappers.wrap(autogen.OpenAIWrapper, "create", _plain(_begin_model_call))
    conversable_agent: Any = import_module("autogen.agentchat.conversable_agent")
    wrappers.replace(conversable_agent, "threading", _Like(threading, Thread=_ThreadWithContext))
    wrappers.replace(conversable_agent, "functools", _Like(functools, partial=_partial_with_context))
    try:
        groups: Any = import_module("autogen.agentchat.group.multi_agent_chat")
    except ImportError:  # before group chats by patterns
        return
    wrappers.replace(groups, "threading", _Like(threading, Thread=_ThreadWithContext))


def _plain(begin: Callable[..., Watch | None]) -> Make:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return watched_sync_call(begin(self, *args, **kwargs), lambda: original(self, *args, **kwargs))

        return call

    return make


def _awaited(begin: Callable[..., Watch | None]) -> Make:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return await watched_call(begin(self, *args, **kwargs), lambda: original(self, *args, **kwargs))

        return call

    return make


@beginning
def _begin_chat(agent: Any, recipient: Any, *_: Any, **__: Any) -> Watch | None:
    frame = current_frame()
    if _is_selecting(frame) or not (_is_on(agent, frame) or _is_on(recipient, frame)):
        return None
    if isinstance(frame, Chat) and frame.between == (agent, recipient):
        return None  # A method of the user's got to the one that it overrides.
    chat = _chat(recipient.name if hasattr(recipient, "groupchat") else f"{agent.name}, {recipient.name}")
    chat.between = (agent, recipient)
    return chat


@beginning
def _begin_reply(agent: Any, *_: Any, **__: Any) -> Watch | None:
    frame = current_frame()
    if _is_selecting(frame) or (isinstance(frame, Reply) and frame.agent is agent) or not _is_on(agent, frame):
        return None
    if hasattr(agent, "groupchat"):
        return None if isinstance(frame, Chat) else _chat(agent.name)
    return _reply(agent)


@beginning
def _begin_selecting(_: Any, __: Any, selector: Any, *___: Any, **____: Any) -> Watch | None:
    if not _is_on(selector, current_frame()):
        return None
    manager = _reply(selector)
    manager.selecting = True
    return manager


@beginning
def _begin_tool(
    agent: Any, func_call: Mapping[str, Any], call_id: str | None = None, *_: Any, **__: Any
) -> Watch | None:
    if not _is_on(agent, current_frame()):
        return None
    chat, name, around = current_chat(), func_call.get("name", ""), runs.current_frame()
    if isinstance(around, _FunctionRun) and around.tool == (agent, name, current_frame()):
        return None  # A method of the user's got to the one that it overrides.
    asker = (chat.askers.get(call_id or name) or chat.askers.get(name)) if chat is not None else None
    acting = Acting(asker.identity, asker.span) if asker is not None else current_acting()
    span = start_tool(
        name,
        identity=acting.identity if acting is not None else None,
        arguments=func_call.get("arguments"),
        call_id=call_id,
        parent=acting.span if acting is not None else None,
    )
    caller = acting.identity if acting is not None else None
    return _FunctionRun(span, caller, tool=(agent, name, current_frame()), chat=chat)


@beginning
def _begin_model_call(client: Any, **config: Any) -> Watch | None:
    frame, agent = current_frame(), config.get("agent")
    if not _is_on(agent, frame):
        return None
    acting = current_acting()
    identity, parent = (acting.identity, acting.span) if acting is not None else (child_identity("agent"), None)
    if isinstance(frame, Reply):
        parent = frame.open()
    elif agent is not None:
        # Outside any reply, such as for the summary of a chat.
        identity, parent = _below(acting, agent.name), frame.span if frame is not None else parent
    clients = getattr(client, "_config_list", None) or [{}]
    arguments = {**clients[0], **config}
    return _ModelCall(
        ToldCall(
            announced=AnnouncedCall(identity, parent),
            start_ns=time.time_ns(),
            messages=lambda: [dict(message) for message in config.get("messages") or ()],
            model=arguments.get("model"),
            provider=arguments.get("api_type"),
            parameters=arguments,
            tools=arguments.get("tools") or (),
        )
    )


@dataclass(slots=True, eq=False)
class _ModelCall:
    """One call of ``OpenAIWrapper.create``."""

    told: ToldCall
    result: Any = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        with announcing(self.told.announced):
            yield

    def saw(self, item: Any) -> None:
        self.result = item

    def ended(self, error: BaseException | None) -> None:
        self.told.announced.ended = True
        if error is not None:
            record_told_error(self.told, error)
        elif not self.told.announced.captured:
            record_told_answer(self.told, _answer(self.result))


@dataclass(slots=True, eq=False)
class _FunctionRun(ToolRun):
    """One call of a function, whose result says whether it failed, and in a group whom it sends to speak next."""

    chat: Chat | None = None

    def saw(self, item: Any) -> None:
        succeeded, about = item
        result = about.get("content")
        self.result, self.failed = str(getattr(result, "message", result)), not succeeded
        target = getattr(getattr(result, "target", result), "agent_name", None)
        if target is not None and self.chat is not None and self.caller is not None:
            self.chat.handed_over[target] = self.caller.agent
            mark_tool_as_edge(self.span, EdgeKind.HANDOFF, target)


class _ThreadWithContext(threading.Thread):
    """A thread that begins with the context of who makes it: in it the attempt and the acting agent are known."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._context = copy_context()

    def run(self) -> None:
        """What the thread is for, in that context."""
        self._context.run(super().run)


class _Like(SimpleNamespace):
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(**replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _partial_with_context(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``functools.partial``; the one with which an agent's model is called in a thread keeps the context."""
    if getattr(function, "__name__", "") == "_generate_oai_reply":
        return partial(copy_context().run, function, *args, **kwargs)
    return partial(function, *args, **kwargs)


def _chat(name: str) -> Chat:
    frame, acting = current_frame(), current_acting()
    by = frame if isinstance(frame, Reply) and not _in_tool(acting) else None
    parent = by.open() if by is not None else _parent(frame, acting)
    span = start_workflow(name, identity=acting.identity if acting is not None else None, parent=parent)
    return Chat(span, acting, delegated_by=by)


def _reply(agent: Any) -> Reply:
    frame, acting = current_frame(), current_acting()
    chat = None if _in_tool(acting) else current_chat()
    return Reply(_below(acting, agent.name), agent, chat, _parent(frame, acting))


def _parent(frame: Chat | Reply | None, acting: Acting | None) -> Span | None:
    if isinstance(frame, Chat) and not _in_tool(acting):
        return frame.span
    return acting.span if acting is not None else None


def _in_tool(acting: Acting | None) -> bool:
    run = runs.current_frame()
    return isinstance(run, ToolRun) and acting is not None and acting.span is run.span


def _below(acting: Acting | None, name: str) -> Identity:
    return child_identity(name, acting.identity if acting is not None else None)


def _is_selecting(frame: Chat | Reply | None) -> bool:
    return isinstance(frame, Reply) and frame.selecting


def _is_on(target: Any, frame: Chat | Reply | None) -> bool:
    return is_instrumentation_enabled() and (frame is not None or is_recorded(target))


def _answer(response: Any) -> ToldAnswer:
    messages = [_plain_message(choice.message) for choice in response.choices]
    usage = getattr(response, "usage", None)
    text = messages[0].get("content") if messages else None
    return ToldAnswer(
        messages=messages,
        text=text if isinstance(text, str) else "",
        id=getattr(response, "id", None),
        model=getattr(response, "model", None),
        finish_reasons=[reason for choice in response.choices if (reason := getattr(choice, "finish_reason", None))],
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
    )


def _plain_message(message: Any) -> dict[str, JSON]:
    if hasattr(message, "model_dump"):
        dumped: dict[str, JSON] = message.model_dump(mode="json", exclude_none=True)
        return dumped
    return {"role": "assistant", "content": getattr(message, "content", None) or str(message)}
