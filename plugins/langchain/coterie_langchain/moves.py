"""Where control moved in one run of a graph, as LangGraph's own record of each superstep says.

A task that ends writes to the channel ``branch:to:X`` for every node X that comes next, whether by an edge, a condition
or a ``Command``; to ``join:A+B:X`` where X waits for several; and a ``Send`` for each packet. What is read from that is
exact in parallel branches too, and an activation that was never set off has no edge.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coterie.episodes import EdgeKind
from coterie.structure import add_edge
from coterie_langchain.identity import agent_at_node, agent_of_activation

if TYPE_CHECKING:
    from coterie_langchain.runs import Run

_BRANCH = "branch:to:"
_JOIN = "join:"
_SENDS = "__pregel_tasks"
"""The channels that say what comes next. No node's name has a colon in it."""
_HIDDEN = "langsmith:hidden"
"""The tag of the framework's own nodes."""


@dataclass(frozen=True, slots=True)
class Move:
    """Control moved from an agent to a node."""

    source: str
    """Agent name."""
    node: str
    time_ns: int


@dataclass(slots=True)
class Moves:
    """What one run of a graph has told so far."""

    activations: dict[str, Run] = field(default_factory=dict)
    """The nodes that run in this superstep, by LangGraph's name of the activation."""
    waiting: dict[str, dict[str, str]] = field(default_factory=dict)
    """Channel that has not set off its node yet → the tasks, or nodes, that wrote to it → their agents' names."""
    made: list[Move] = field(default_factory=list)
    speakers: set[str] = field(default_factory=set)
    """Nodes that made LLM calls themselves."""
    tool_nodes: set[str] = field(default_factory=set)
    """Nodes that ran tools which other agents had asked for."""


def follow_superstep(graph: Run, loop: Any, tasks: Mapping[str, Any]) -> None:
    """Take up what comes next after a superstep.

    Args:
        graph: the run of the graph.
        loop: LangGraph's ``PregelLoop``, which has applied what the tasks wrote.
        tasks: the superstep's tasks by id.
    """
    moves = graph.moves
    if moves is None:
        return
    now = time.time_ns()
    for task_id, task in tasks.items():
        activation = moves.activations.get(task.config["metadata"].get("langgraph_checkpoint_ns"))
        _note_kind(moves, task.name, activation)
        if _is_tool_node(loop, task.name):
            moves.tool_nodes.add(task.name)
        if _HIDDEN in (task.config.get("tags") or ()):
            continue
        said = list(activation.left_for) if activation is not None else []
        for channel, value in task.writes:
            node = _next_node(channel, value)
            if node is None:
                continue
            if _is_tool_node(loop, node):
                moves.tool_nodes.add(node)
            source = _source(graph, moves, task.name, activation)
            if node in said and activation is not None:
                said.remove(node)
                source = activation.left_by
            if source is None:
                continue
            if channel == _SENDS:
                moves.made.append(Move(source, node, now))
            else:
                moves.waiting.setdefault(channel, {})[value if channel.startswith(_JOIN) else task_id] = source
    for channel in [channel for channel in moves.waiting if loop.channels[channel].is_available()]:
        node = channel.rpartition(":")[2]
        moves.made += [Move(source, node, now) for source in moves.waiting.pop(channel).values()]
    moves.activations.clear()


def write_moves(graph: Run) -> None:
    """Write the edges between agents on the span of the graph, which ends now: only now it is known which nodes only
    run tools for others, so that nothing is handed over to them.
    """
    moves = graph.moves
    if moves is None or graph.span is None:
        return
    graph.moves = None
    for name, activation in [(run.name, run) for run in moves.activations.values()]:
        _note_kind(moves, name, activation)
    for move in moves.made:
        if move.node in moves.tool_nodes and move.node not in moves.speakers:
            continue
        target = agent_at_node(graph, move.node)
        if target is not None and target != move.source:
            add_edge(graph.span, EdgeKind.HANDOFF, move.source, target, time_ns=move.time_ns)


def _note_kind(moves: Moves, node: str, activation: Run | None) -> None:
    if activation is not None and activation.has_spoken:
        moves.speakers.add(node)
    elif activation is not None and activation.ran_tools_of:
        moves.tool_nodes.add(node)


def _source(graph: Run, moves: Moves, node: str, activation: Run | None) -> str | None:
    if node in moves.tool_nodes and node not in moves.speakers:
        # What comes after the tools comes after the agent that asked for them.
        return agent_of_activation(activation) if activation is not None and activation.ran_tools_of else None
    return agent_at_node(graph, node) if activation is None else agent_of_activation(activation)


def _next_node(channel: str, value: Any) -> str | None:
    if channel == _SENDS:
        node = getattr(value, "node", None)
        return node if isinstance(node, str) else None
    return channel.rpartition(":")[2] if channel.startswith((_BRANCH, _JOIN)) else None


def _is_tool_node(loop: Any, node: str) -> bool:
    # LangGraph has one such class, and LangChain 1.0 another.
    bound = getattr(loop.nodes.get(node), "bound", None)
    return any(kind.__name__ == "ToolNode" for kind in type(bound).__mro__)
