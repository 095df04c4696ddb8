"""The framework's runs that are under way, as a tree: what each is, who acts in it, and which span stands for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import ref

from opentelemetry.trace import Span

from coterie.announced import AnnouncedCall
from coterie.roles import Identity
from coterie.uncaptured import ToldCall

if TYPE_CHECKING:
    from coterie_langchain.moves import Moves

MOST_OPEN_RUNS = 50_000
"""So many runs are remembered; beyond that the oldest tree is taken for abandoned and its spans are ended."""

MOST_THREADS = 1_000
"""Of so many threads it is remembered which agent asked for tools that are yet to run."""


class RunKind(StrEnum):
    """What a run is."""

    CHAIN = "chain"
    """A plain runnable, until a first node below it shows that it is a graph."""
    GRAPH = "graph"
    """A compiled graph whose nodes are agents."""
    CREATED_AGENT = "created_agent"
    """A graph made by LangChain's ``create_agent``: it is one agent, its nodes are parts."""
    AGENT_BY_NODES = "agent_by_nodes"
    """A graph without such a mark that has the nodes of an agent, as ``create_react_agent`` makes: those are parts."""
    NODE = "node"
    """A node of a graph, or a task of LangGraph's functional API."""
    TOOL = "tool"
    """A tool call."""
    MODEL = "model"
    """An LLM call."""


@dataclass(slots=True, eq=False)
class Run:
    """One run. What it does not say of its own it has from its parent."""

    id: UUID
    kind: RunKind
    name: str
    parent: Run | None
    start_ns: int
    span: Span | None
    """The nearest span: its own or one above."""
    identity: Identity | None
    """Who acts in it."""
    owns_span: bool = False
    checkpoint_ns: str | None = None
    """LangGraph's name of this activation of a node: a run that has another one than its parent is a node."""
    lc_agent_name: str | None = None
    """The name given to ``create_agent``; runs below inherit it."""
    integration: str | None = None
    """Which of LangChain's makers of graphs made it; runs below inherit it."""
    agent: Run | None = None
    """The run that is the acting agent's activation."""
    tool: Run | None = None
    """The tool call in which it happens, unless another agent acts in between."""
    is_part: bool = False
    """A node that is no agent but a part of one, such as the ``model`` node of ``create_agent``."""
    has_spoken: bool = False
    """Of an agent: it made an LLM call."""
    ran_tools_of: frozenset[str] = frozenset()
    """Of an agent: the agents, by name, that had asked for the tools that it ran."""
    left_by: str | None = None
    """Of what a ``Command`` to a graph above left: the agent that said it."""
    left_for: tuple[str, ...] = ()
    """Of what a ``Command`` to a graph above left: the nodes that it names."""
    leaving: tuple[ref[BaseException], str | None] | None = None
    """The exception that left a run below on its way up, and the agent that raised it."""
    moves: Moves | None = None
    """Of a graph: where control moved in it."""
    announced: AnnouncedCall | None = None
    """Of an LLM call: what capture is told of it."""
    told: Callable[[], ToldCall] | None = None
    """Of an LLM call: what is known about it, put together only if capture does not see it."""
    thread: tuple[str | None, str] | None = None
    """Of the outermost run with a checkpointer: the attempt's id and LangGraph's thread."""
    root: Run = field(init=False)
    """The outermost run."""
    open_runs: dict[UUID, Run] = field(init=False)
    """All runs below the outermost one that have not ended, in one mapping for all of them. So are the next two."""
    tool_callers: dict[str, Identity] = field(init=False)
    """Tool call id, and tool name, to the agent whose answer asked for it (last)."""
    tool_callers_before: dict[str, Identity] = field(init=False)
    """``tool_callers`` of the thread's run before, which may have paused in front of the tools."""

    def __post_init__(self) -> None:
        parent = self.parent
        if parent is None:
            self.root = self
            self.open_runs, self.tool_callers, self.tool_callers_before = {}, {}, {}
            return
        self.root = parent.root
        self.open_runs, self.tool_callers = parent.open_runs, parent.tool_callers
        self.tool_callers_before = parent.tool_callers_before
        self.agent = parent.agent
        self.tool = parent if parent.kind is RunKind.TOOL else parent.tool
        self.is_part = parent.is_part


class RunTable:
    """All open runs by id. Safe from any thread, and bounded: a run that never ends is thrown out some time."""

    def __init__(self, limit: int = MOST_OPEN_RUNS) -> None:
        self._limit = limit
        self._runs: dict[UUID, Run] = {}
        self._tool_callers: dict[tuple[str | None, str], dict[str, Identity]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._runs

    def get(self, run_id: UUID | None) -> Run | None:
        """The open run of this id."""
        return None if run_id is None else self._runs.get(run_id)

    def add(self, run: Run) -> None:
        """Remember a run that starts."""
        abandoned: list[Run] = []
        with self._lock:
            self._runs[run.id] = run
            run.root.open_runs[run.id] = run
            if run.thread is not None:
                run.tool_callers_before |= self._tool_callers.pop(run.thread, {})
            if len(self._runs) > self._limit:
                oldest = next(iter(self._runs.values()))
                abandoned = self._take_tree(oldest.root)
        _end_spans(abandoned)

    def take(self, run_id: UUID) -> Run | None:
        """Forget a run that ends, and give it. With an outermost run all that is still open below it goes too."""
        left: list[Run] = []
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None:
                return None
            run.root.open_runs.pop(run_id, None)
            if run.root is run and run.open_runs:
                left = self._take_tree(run)
            if run.thread is not None:
                self._remember_tool_callers(run.thread, run.tool_callers or run.tool_callers_before)
        _end_spans(left)
        return run

    def _remember_tool_callers(self, thread: tuple[str | None, str], callers: dict[str, Identity]) -> None:
        if callers:
            self._tool_callers[thread] = callers
        if len(self._tool_callers) > MOST_THREADS:
            del self._tool_callers[next(iter(self._tool_callers))]

    def _take_tree(self, root: Run) -> list[Run]:
        runs = list(root.open_runs.values())
        root.open_runs.clear()
        for run in runs:
            self._runs.pop(run.id, None)
        return runs


def _end_spans(runs: list[Run]) -> None:
    for run in reversed(runs):
        if run.owns_span and run.span is not None:
            run.span.end()


open_runs = RunTable()
"""One table for the process: two handlers at the same run see that they are two."""
