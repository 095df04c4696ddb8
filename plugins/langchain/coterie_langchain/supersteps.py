"""The hook in LangGraph's loop: the method that closes a superstep is wrapped, since no callback says what comes next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from threading import Lock
from typing import Any

from coterie.capture.faults import note_fault, warn_once
from coterie.wrapping import as_function
from coterie_langchain.handoffs import is_control_flow
from coterie_langchain.moves import follow_superstep
from coterie_langchain.runs import open_runs

_LOOP_MODULE = "langgraph.pregel._loop"
_METHOD = "after_tick"

_wrapped: list[tuple[type, Callable[..., Any], Callable[..., Any]]] = []
"""Class, original, wrapper; at most one."""
_wrapping = Lock()


def watch_supersteps() -> None:
    """Follow the graphs that run from now on. For when LangGraph is imported; a second call does nothing."""
    if _wrapped:
        return
    with _wrapping:
        loop = getattr(sys.modules.get(_LOOP_MODULE), "PregelLoop", None)
        original = vars(loop).get(_METHOD) if loop is not None else None
        if loop is None or original is None:
            warn_once(
                "This version of LangGraph has no superstep to follow, so hand-offs in its graphs are not recorded"
            )
        elif not _wrapped:
            wrapper = _following(as_function(original))
            setattr(loop, _METHOD, wrapper)
            _wrapped.append((loop, original, wrapper))


def unwatch_supersteps() -> None:
    """Put LangGraph's own method back. A second call does nothing."""
    with _wrapping:
        while _wrapped:
            loop, original, wrapper = _wrapped.pop()
            wrapper.off = True  # type: ignore[attr-defined]
            # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
            if vars(loop).get(_METHOD) is wrapper:
                setattr(loop, _METHOD, original)


def _following(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def after_tick(self: Any, *args: Any, **kwargs: Any) -> Any:
        tasks = getattr(self, "tasks", {})
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            if is_control_flow(error):
                # The superstep is over, and the graph pauses after it.
                _follow(after_tick, self, tasks)
            raise
        _follow(after_tick, self, tasks)
        return result

    after_tick.off = False  # type: ignore[attr-defined]
    return after_tick


def _follow(wrapper: Any, loop: Any, tasks: Mapping[str, Any]) -> None:
    if wrapper.off:
        return
    try:
        graph = open_runs.get(getattr(loop.manager, "run_id", None))
        if graph is not None:
            follow_superstep(graph, loop, tasks)
    except Exception:  # noqa: BLE001 - the user's graph goes on
        note_fault("Where control moved in a LangGraph graph could not be recorded")
