"""LLM calls as CrewAI's events tell them: announced to capture, and recorded from the events where capture saw none.

CrewAI's OpenAI provider goes through the OpenAI SDK, where capture sees the call. LiteLLM and the providers of other
vendors do not: their calls are recorded from what the events say, once each, without token ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from coterie.announced import AnnouncedCall, announce, announced_call
from coterie.roles import current_acting
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import JSON
from coterie_crewai.identity import Activity, current_activity, current_agent, speaker
from coterie_crewai.tools import as_arguments

MOST_OPEN_CALLS = 10_000
"""LLM calls under way that are remembered; a call that never ends is forgotten some time."""


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


def call_started(event: Any) -> None:
    """An LLM is about to be called in this context."""
    acting, activity, agent = current_acting(), current_activity(), current_agent()
    identity = speaker(event.agent_role, acting)
    span = acting.span if acting is not None and acting.span is not None else activity.span if activity else None
    announced = AnnouncedCall(identity, parent=span)
    model = event.model or ""
    told = ToldCall(
        announced,
        time.time_ns(),
        lambda: _messages(event.messages),
        model=model.rpartition("/")[2] or None,
        provider=model.partition("/")[0] if "/" in model else None,
        parameters={
            name: value
            for name in ("temperature", "max_tokens", "top_p", "seed")
            if isinstance(value := getattr(event, name, None), int | float)
        },
        tools=event.tools or (),
    )
    call = OpenCall(event.call_id, told, announced_call(), agent)
    with _lock:
        _open[event.call_id] = call
        if len(_open) > MOST_OPEN_CALLS:
            _open.pop(next(iter(_open)))
    if agent is not None:
        with agent.lock:
            agent.calls[event.call_id] = call
    announce(announced)


def call_completed(event: Any) -> None:
    """The LLM answered."""
    call = _take(event.call_id)
    if call is None:
        return
    call.over()
    tool_calls = _tool_calls(event.response)
    if call.agent is not None and tool_calls:
        with call.agent.lock:
            call.agent.asked[:] = [
                (one["function"]["name"], as_arguments(one["function"]["arguments"]), one["id"]) for one in tool_calls
            ]
    if not call.told.announced.captured:
        record_told_answer(call.told, _answer(event, tool_calls))


def call_failed(event: Any) -> None:
    """The LLM call failed. CrewAI says so once or twice."""
    call = _take(event.call_id)
    if call is not None:
        call.over()
        record_told_error(call.told, str(event.error))


def _take(call_id: str) -> OpenCall | None:
    with _lock:
        call = _open.pop(call_id, None)
    if call is not None and call.agent is not None:
        with call.agent.lock:
            call.agent.calls.pop(call_id, None)
    return call


def _messages(given: Any) -> Sequence[Mapping[str, JSON]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [message for message in given or () if isinstance(message, Mapping)]


def _answer(event: Any, tool_calls: list[dict[str, Any]]) -> ToldAnswer:
    response = event.response
    text = response if isinstance(response, str) else "" if tool_calls else json.dumps(response, default=str)
    message: dict[str, JSON] = {"role": "assistant", "content": text or None}
    if tool_calls:
        message["tool_calls"] = tool_calls
    usage = getattr(event, "usage", None) or {}
    finish_reason = getattr(event, "finish_reason", None)
    return ToldAnswer(
        messages=[message],
        text=text,
        id=getattr(event, "response_id", None),
        model=event.model,
        finish_reasons=[finish_reason] if finish_reason else (),
        input_tokens=_count(usage, "prompt_tokens", "input_tokens"),
        output_tokens=_count(usage, "completion_tokens", "output_tokens"),
    )


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
