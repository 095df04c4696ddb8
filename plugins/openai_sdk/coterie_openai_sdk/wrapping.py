"""Where the plugin takes hold of the SDK: the two methods of its runner, and its note of a tool's error.

Each run gets a ``Run`` of ours and, through the public parameter ``hooks``, ``RecordingHooks`` in front of the user's own
hooks. Why not the SDK's traces: they are off for many users, others' ``set_trace_processors`` throws a processor out,
and they know no tool-call ids. Why not its experimental default runner: users of it replace it. Why not
``call_model_input_filter``: where one is set, the SDK copies and compares every input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Token
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from typing import Any

from agents.run import AgentRunner
from agents.util import _error_tracing
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import guarded, note_fault
from coterie.roles import add_acting_source, remove_acting_source
from coterie.wrapping import as_function
from coterie_openai_sdk.hooks import RecordingHooks, are_hooks
from coterie_openai_sdk.identity import Place, acting_in_running_code, place
from coterie_openai_sdk.runs import Run, start_run


def hold(key: object) -> None:
    """Record runs from now on, until ``key`` and all others that hold have released."""
    with _lock:
        _holders.add(key)
        if _wrapped:
            return
        _wrap(AgentRunner, "run", _recorded_run)
        _wrap(AgentRunner, "run_streamed", _recorded_run_streamed)
        _wrap(_error_tracing, "attach_error_to_current_span", _noted_error)
        add_acting_source(acting_in_running_code)


def release(key: object) -> None:
    """Let go. The last one puts everything back; runs that are under way are recorded to their end."""
    with _lock:
        _holders.discard(key)
        if _holders:
            return
        while _wrapped:
            owner, name, original, wrapper = _wrapped.pop()
            wrapper.off = True  # type: ignore[attr-defined]
            # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
            if vars(owner).get(name) is wrapper:
                setattr(owner, name, original)
        remove_acting_source(acting_in_running_code)


_holders: set[object] = set()
_wrapped: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []
"""Class or module, name, original, wrapper."""
_lock = RLock()


def _wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = vars(owner)[name]
    wrapper = wraps(original)(make(as_function(original) if isinstance(owner, type) else original))
    wrapper.off = False  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)
    _wrapped.append((owner, name, original, wrapper))


@dataclass(frozen=True, slots=True)
class _Entered:
    """A run that is about to start, its arguments, and the way back."""

    run: Run
    arguments: dict[str, Any]
    token: Token[Place | None]

    def leave(self) -> None:
        # A coroutine that is thrown away is closed in another context, where the token means nothing.
        with suppress(ValueError):
            place.reset(self.token)


def _recorded_run(original: Callable[..., Any]) -> Callable[..., Any]:
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        entered = None if run.off else _enter(args, kwargs)  # type: ignore[attr-defined]
        if entered is None:
            return await original(self, *args, **kwargs)
        try:
            result = await original(self, *args, **entered.arguments)
        except BaseException as error:
            entered.run.end(error)
            raise
        finally:
            entered.leave()
        entered.run.end()
        return result

    return run


def _recorded_run_streamed(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_streamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        entered = None if run_streamed.off else _enter(args, kwargs)  # type: ignore[attr-defined]
        if entered is None:
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **entered.arguments)
        except BaseException as error:
            entered.run.end(error)
            raise
        finally:
            entered.leave()
        _end_with_task(entered.run, result)
        return result

    return run_streamed


def _noted_error(original: Callable[..., Any]) -> Callable[..., Any]:
    def attach_error_to_current_span(error: Any) -> Any:
        if not attach_error_to_current_span.off:  # type: ignore[attr-defined]
            _note_tool_error(error)
        return original(error)

    return attach_error_to_current_span


def _enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Entered | None:
    """Take up a run; None when it is not to be recorded, or we fail: it then goes on as the user wrote it."""
    try:
        users = kwargs.get("hooks")
        if not is_instrumentation_enabled() or not are_hooks(users):
            return None
        agent = args[0] if args else kwargs["starting_agent"]
        given = args[1] if len(args) > 1 else kwargs.get("input")
        run = start_run(agent, given, kwargs.get("run_config"), nested=place.get() is not None)
        return _Entered(run, {**kwargs, "hooks": RecordingHooks(run, users)}, place.set(Place(run)))
    except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
        note_fault("A run of the OpenAI Agents SDK could not be recorded")
        return None


def _end_with_task(run: Run, result: Any) -> None:
    # ``stream_events`` waits for this task before it ends, so the spans are there when the user's loop is over.
    task = getattr(result, "run_loop_task", None) or getattr(result, "_run_impl_task", None)
    if isinstance(task, asyncio.Task):
        task.add_done_callback(lambda done: run.end(_error_of(done, result)))
    else:
        run.end()


def _error_of(task: asyncio.Task[Any], result: Any) -> BaseException | None:
    if task.cancelled():
        return getattr(result, "_stored_exception", None) or asyncio.CancelledError()
    # ``exception()`` would tell asyncio that somebody has dealt with it.
    return getattr(task, "_exception", None) or getattr(result, "_stored_exception", None)


@guarded
def _note_tool_error(error: Any) -> None:
    current = place.get()
    if current is not None and current.tool is not None:
        data = error.get("data") or {}
        current.tool.error = str(data.get("error") or error.get("message"))
