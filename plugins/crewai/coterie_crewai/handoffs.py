"""Where control goes in a crew: from the agent of one task to the agent of the next.

Delegations need no word here: a coworker's agent runs under the tool call of the agent that asks it, and the nesting
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from opentelemetry.trace import Span

from coterie.episodes import EdgeKind
from coterie.structure import add_edge


class Moves:
    """The way of control through the tasks of one run of a crew.

    A task follows the one before it. Tasks with ``async_execution`` start side by side, all after the last task that
    was waited for; the next task that is not one of them waits for them all, and follows each.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self._tasks = {id(task) for task in tasks}
        self._last: str | None = None
        """The agent of the last task that was waited for."""
        self._beside: list[str] = []
        """The agents of the tasks that ran side by side since."""
        self._lock = Lock()

    def starts(self, task: Any, agent: str, span: Span) -> None:
        """Note that an agent takes up a task. The edge is on its own span: that of the former agent has ended."""
        if id(task) not in self._tasks:
            return
        with self._lock:
            beside = self._beside if not task.async_execution else []
            sources = beside or ([self._last] if self._last is not None else [])
        for source in dict.fromkeys(sources):
            if source != agent:
                add_edge(span, EdgeKind.HANDOFF, source, agent)

    def ends(self, task: Any, agent: str) -> None:
        """Note that an agent is done with a task."""
        if id(task) not in self._tasks:
            return
        with self._lock:
            if task.async_execution:
                self._beside.append(agent)
            else:
                self._last, self._beside = agent, []
