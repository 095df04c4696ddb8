"""LLM calls as CrewAI's events tell them: announced to capture, and recorded from the events where capture saw none.

CrewAI's OpenAI provider goes through the OpenAI SDK, where capture sees the call. LiteLLM and the providers of other
vendors do not: their calls are recorded from what the events say, once each, without token ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from coterie.announced import AnnouncedCall, announce, announced_call
from coterie.roles import Identity
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import JSON
from coterie_crewai.identity import Activity, current_activity, current_agent, span_around, speaker
from coterie_crewai.tools import as_arguments

MOST_OPEN_CALLS = 10_000
"""LLM calls under way that are remembered; a call that never ends is forgotten some time."""


@dataclass(slots=True, eq=False)
class AnnouncedByCrewAI(AnnouncedCall):
    """An announced call, with what tells whether another one is made for it."""

    activity: Activity | None = None
    """What was at work in the context when it began."""
    custom: bool = False
    """A call of the user's own LLM class, which may lead on to a call that is recorded in its place."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """An LLM call under way."""

    id: str
    told: ToldCall
    around: AnnouncedCall | None
    """The call in whose tool this one is made: it may have further requests to make."""
    agent: Activity | None

    def over(self) -> None:
        """What is requested from now on in this context is no more part of this call."""
        self.told.announced.ended = True
        if announced_call() is None and self.around is not None and not self.around.ended:
            announce(self.around)

    def end_unanswered(self, error: BaseException | None) -> None:
        """The agent is gone without a word of the call's end."""
        _take(self.id)
        self.over()
        record_told_error(self.told, error if error is not None else "CrewAI did not say how the call ended.")


_open: dict[str, OpenCall] = {}
_lock = Lock()


def call_started(llm: Any, event: Any) -> None:
    """An LLM is about to be called in this context."""
    open_call(
        event.call_id,
        llm,
        speaker(event.agent_role),
        lambda: as_messages(event.messages),
        model=event.model,
        parameters=event,
        tools=event.tools or (),
    )


def call_completed(_: Any, event: Any) -> None:
    """The LLM answered."""
    answered(event.call_id, event.response, lambda: _about(event))


def call_failed(_: Any, event: Any) -> None:
    """The LLM call failed. CrewAI says so once or twice."""
    failed(event.call_id, str(event.error))


def open_call(
    call_id: str,
    llm: Any,
    identity: Identity,
    messages: Callable[[], Sequence[Mapping[str, JSON]]],
    *,
    model: str | None,
    parameters: Any,
    tools: Sequence[JSON],
    custom: bool = False,
) -> None:
    """Announce a call in the present context, and remember what is known about it.

    Args:
        call_id: CrewAI's id of it, or one of ours.
        llm: CrewAI's object.
        identity: who calls.
        messages: gives what is sent.
        model: as CrewAI has it, with or without the provider before a slash.
        parameters: has ``temperature`` and so on as attributes.
        tools: what is offered.
        custom: whether the LLM's class is the user's own.
    """
    activity, around, agent, model = current_activity(), announced_call(), current_agent(), model or ""
    announced = AnnouncedByCrewAI(identity, parent=span_around(), activity=activity, custom=custom)
    if isinstance(around, AnnouncedByCrewAI) and around.custom and around.activity is activity:
        around.captured = True  # This one is made for it, and is recorded.
    told = ToldCall(
        announced,
        time.time_ns(),
        messages,
        model=model.rpartition("/")[2] or None,
        provider=model.rpartition("/")[0] or getattr(llm, "provider", None),
        parameters=partial(_parameters, parameters),
        tools=tools,
    )
    call = OpenCall(call_id, told, around, agent)
    with _lock:
        _open[call_id] = call
        if len(_open) > MOST_OPEN_CALLS:
            _open.pop(next(iter(_open)))
    if agent is not None:
        with agent.lock:
            agent.calls[call_id] = call
    announce(announced)


def answered(call_id: str, response: Any, about: Callable[[], Mapping[str, Any]] = dict) -> None:
    """End a call with what it gave: a text, tool calls, or a value. ``about`` gives fields of ``ToldAnswer``; it is asked
    only if capture did not see the call.
    """
    call = _take(call_id)
    if call is None:
        return
    call.over()
    tool_calls = _tool_calls(response)
    if call.agent is not None and tool_calls:
        with call.agent.lock:
            call.agent.asked[:] = [
                (one["function"]["name"], as_arguments(one["function"]["arguments"]), one["id"]) for one in tool_calls
            ]
    if not call.told.announced.captured:
        text = response if isinstance(response, str) else "" if tool_calls else _as_json(response)
        message: dict[str, JSON] = {"role": "assistant", "content": text or None}
        if tool_calls:
            message["tool_calls"] = tool_calls
        record_told_answer(call.told, ToldAnswer(messages=[message], text=text, **about()))


def failed(call_id: str, error: BaseException | str) -> None:
    """End a call with an error. A call that has ended already is left as it is."""
    call = _take(call_id)
    if call is not None:
        call.over()
        record_told_error(call.told, error)


def _take(call_id: str) -> OpenCall | None:
    with _lock:
        call = _open.pop(call_id, None)
    if call is not None and call.agent is not None:
        with call.agent.lock:
            call.agent.calls.pop(call_id, None)
    return call


def as_messages(given: Any) -> Sequence[Mapping[str, JSON]]:
    """What CrewAI sends, a text or messages, in the form of Chat Completions."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [message for message in given or () if isinstance(message, Mapping)]


def _as_json(value: Any) -> str:
    dump = getattr(value, "model_dump_json", None)
    return str(dump()) if callable(dump) else json.dumps(value, default=str)


def _parameters(given: Any) -> Mapping[str, Any]:
    return {
        name: value
        for name in ("temperature", "max_tokens", "top_p", "seed")
        if isinstance(value := getattr(given, name, None), int | float)
    }


def _about(event: Any) -> Mapping[str, Any]:
    usage = getattr(event, "usage", None) or {}
    finish_reason = getattr(event, "finish_reason", None)
    return {
        "id": getattr(event, "response_id", None),
        "model": event.model,
        "finish_reasons": [finish_reason] if finish_reason else (),
        "input_tokens": _count(usage, "prompt_tokens", "input_tokens"),
        "output_tokens": _count(usage, "completion_tokens", "output_tokens"),
    }


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), None)


def _tool_calls(response: Any) -> list[dict[str, Any]]:
    """The tool calls that an answer asks for, in the form of Chat Completions, whichever provider's form they have."""
    calls = []
    for one in response if isinstance(response, list) else ():
        about = one if isinstance(one, Mapping) else getattr(one, "__dict__", {})
        function = about.get("function") or about
        if not isinstance(function, Mapping):
            function = getattr(function, "__dict__", {})
        name = function.get("name")
        arguments = function.get("arguments", function.get("input", function.get("args", {})))
        if isinstance(name, str):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
            call_id = about.get("id") or about.get("call_id") or about.get("toolUseId") or ""
            calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": text}})
    return calls
