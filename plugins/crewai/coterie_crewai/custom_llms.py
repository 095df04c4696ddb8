"""LLM classes of the user's own, which need not emit CrewAI's events: their ``call`` is wrapped as well.

A call of theirs is recorded once, by the first of these that sees it: capture, CrewAI's events, or this module from
what the method gets and gives back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import note_fault
from coterie.vocabulary import new_id
from coterie.wrapping import derived_from
from coterie_crewai import uncaptured
from coterie_crewai.identity import agent_name, speaker
from coterie_crewai.patches import patches


def wrap_custom_llms() -> None:
    """Wrap the classes of LLMs that are known by now and are not CrewAI's. Doing it again adds the new ones."""
    from crewai import BaseLLM

    for owner in (BaseLLM, *derived_from(BaseLLM)):
        if owner.__module__.partition(".")[0] != "crewai":
            patches.instead(owner, "call", _called)
            patches.instead(owner, "acall", _awaited)


def _called(original: Callable[..., Any]) -> Any:
    @wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        call_id = None if call.off else _begin(self, args, kwargs)  # type: ignore[attr-defined]
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _fail(call_id, error)
            raise
        _end(call_id, result)
        return result

    return call


def _awaited(original: Callable[..., Any]) -> Any:
    @wraps(original)
    async def acall(self: Any, *args: Any, **kwargs: Any) -> Any:
        call_id = None if acall.off else _begin(self, args, kwargs)  # type: ignore[attr-defined]
        try:
            result = await original(self, *args, **kwargs)
        except BaseException as error:
            _fail(call_id, error)
            raise
        _end(call_id, result)
        return result

    return acall


def _begin(llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if not is_instrumentation_enabled():
        return None
    try:
        messages = args[0] if args else kwargs.get("messages")
        agent = args[5] if len(args) > 5 else kwargs.get("from_agent")
        call_id = new_id("own")
        uncaptured.open_call(
            call_id,
            llm,
            speaker(agent_name(agent) if agent is not None else None),
            lambda: uncaptured.as_messages(messages),
            model=getattr(llm, "model", None),
            parameters=llm,
            tools=(args[1] if len(args) > 1 else kwargs.get("tools")) or (),
            custom=True,
        )
    except Exception:  # noqa: BLE001 - the call goes on, unrecorded
        note_fault("A call of a custom LLM could not be recorded")
        return None
    return call_id


def _end(call_id: str | None, result: Any) -> None:
    if call_id is not None:
        try:
            uncaptured.answered(call_id, result)
        except Exception:  # noqa: BLE001 - the user gets the answer
            note_fault("The answer of a custom LLM could not be recorded")


def _fail(call_id: str | None, error: BaseException) -> None:
    if call_id is not None:
        try:
            uncaptured.failed(call_id, error)
        except Exception:  # noqa: BLE001 - the user gets the LLM's own exception
            note_fault("The error of a custom LLM could not be recorded")
