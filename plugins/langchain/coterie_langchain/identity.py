"""Who acts: which runs of LangChain and LangGraph are agents, and what they are called.

LangGraph says of each run in which node it happens; ``create_agent`` adds the agent's name. A compiled graph inside
another one shows itself only when its first node starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from packaging.version import Version

from coterie.capture.faults import note_fault
from coterie.roles import Acting, Identity, child_identity, current_identity
from coterie_langchain.runs import Run, RunKind, open_runs

UNNAMED_AGENT = "agent"
"""The name of an agent that nobody gave one."""

_UNNAMED_GRAPH = "LangGraph"
"""The run name of a graph without a name."""
_CREATE_AGENT = "langchain_create_agent"
_LANGGRAPH = "langgraph"
_FIRST_TO_MARK = Version("1.2.13")
"""From this release on LangChain's ``create_agent`` marks what it makes; LangGraph marks its graphs from 1.1 on."""
_REACT_FIRST_NODES = frozenset({"agent", "pre_model_hook"})
_PARTS = _REACT_FIRST_NODES | {"model", "tools", "post_model_hook", "generate_structured_response"}
"""The nodes of ``create_agent`` and of LangGraph's ``create_react_agent``, for graphs that carry no mark of their own."""
_MIDDLEWARE = (".before_agent", ".before_model", ".after_model", ".after_agent")
"""How ``create_agent`` names the nodes of its middleware."""


def starts_node(parent: Run, metadata: Mapping[str, Any]) -> bool:
    """True if a run below ``parent`` with this metadata is a node of a graph or a task."""
    checkpoint_ns = metadata.get("langgraph_checkpoint_ns")
    return checkpoint_ns is not None and checkpoint_ns != parent.checkpoint_ns


def kind_of_graph(graph: Run, first_node: str) -> RunKind:
    """What a graph is whose first node starts."""
    above = graph.parent
    inherited = above.integration if above is not None else None
    if graph.integration == _CREATE_AGENT and (inherited != _CREATE_AGENT or _own_tag(graph) is not None):
        return RunKind.CREATED_AGENT
    # Below an agent the mark is inherited, and older releases set none: then the first node must tell.
    unmarked = graph.integration != _LANGGRAPH or not _create_agent_leaves_a_mark()
    if first_node in _REACT_FIRST_NODES or (unmarked and (first_node == "model" or first_node.endswith(_MIDDLEWARE))):
        return RunKind.AGENT_BY_NODES
    return RunKind.GRAPH


def is_part_of_agent(graph: Run, node: str) -> bool:
    """True if a node of this graph is no agent of its own, but the graph's model, tools or middleware."""
    if graph.kind is RunKind.AGENT_BY_NODES:
        return node in _PARTS or node.endswith(_MIDDLEWARE)
    return graph.kind is RunKind.CREATED_AGENT


def name_of_graph_agent(graph: Run, kind: RunKind) -> str | None:
    """The name of the agent that a graph as a whole is, or None if it is none: then its nodes are.

    A graph is an agent if its kind says so, and if it is called as a tool. Without a name of its own such an agent has
    the tool's, or else it is the agent around it.
    """
    if kind is RunKind.GRAPH and graph.tool is None:
        return None
    if kind is RunKind.CREATED_AGENT and (tag := _own_tag(graph)) is not None:
        return tag
    if graph.name != _UNNAMED_GRAPH:
        return graph.name
    if graph.tool is not None:
        return graph.tool.name
    return graph.identity.agent if graph.identity is not None else UNNAMED_AGENT


def agent_at_node(graph: Run, node: str) -> str | None:
    """The name of the agent that acts in a node of this graph: its own, or the graph's for a part of the graph's agent."""
    if is_part_of_agent(graph, node):
        return graph.identity.agent if graph.identity is not None else None
    return node


def agent_of_activation(run: Run) -> str | None:
    """The name of the agent that acted in a run which ends. For one that only ran tools it is who had asked for them,
    or None if those were several.
    """
    activation = run.agent
    if activation is not None and activation.ran_tools_of and not activation.has_spoken:
        return next(iter(activation.ran_tools_of)) if len(activation.ran_tools_of) == 1 else None
    return run.identity.agent if run.identity is not None else None


def identity_in(run: Run | None) -> Identity | None:
    """Who acts in a run: the framework's agent, or one that the user's code names deeper within."""
    told = current_identity()
    own = run.identity if run is not None else None
    if own is None or (told is not None and len(told.path) > len(own.path)):
        return told
    return own


def speaker_in(run: Run | None) -> Identity:
    """Who makes an LLM call in a run. In a plain chain nobody has a name, so it is the chain's, or ``agent``."""
    identity = identity_in(run)
    if identity is not None:
        return identity
    name = run.root.name if run is not None else ""
    generic = not name or name == _UNNAMED_GRAPH or name.startswith("Runnable")
    return child_identity(UNNAMED_AGENT if generic else name)


def tool_caller(run: Run | None, tool: str, tool_call_id: str | None) -> Identity | None:
    """Who calls a tool that runs below ``run``.

    A graph made by hand runs tools in a node of their own, which never speaks: there it is the agent whose answer
    asked for the call. Early versions of LangChain do not say which call it is; there it is who last asked for the tool.
    """
    if run is not None and run.agent is not None and not run.agent.has_spoken:
        asked = tool_call_id or tool
        caller = run.root.tool_callers.get(asked) or run.root.tool_callers_before.get(asked)
        if caller is not None:
            run.agent.ran_tools_of |= {caller.agent}
            return caller
    return identity_in(run)


def acting_in_running_code() -> Acting | None:
    """Who acts in a node or tool, for code in it that calls a model without LangChain."""
    try:
        run = running_run()
    except Exception:  # noqa: BLE001 - it is asked wherever an identity is needed, in the midst of the user's code
        note_fault("LangChain's running node could not be found")
        return None
    return None if run is None or run.identity is None else Acting(run.identity, run.span)


def parent_of_new_run(parent_run_id: UUID | None) -> Run | None:
    """The open run below which one starts. Callbacks given by hand inside a node hide it from LangChain, not from us."""
    return running_run() if parent_run_id is None else open_runs.get(parent_run_id)


def running_run() -> Run | None:
    """The run in whose node or tool the present code is, as LangChain hands it to runs below."""
    from langchain_core.runnables.config import var_child_runnable_config

    config = var_child_runnable_config.get()
    if not config:
        return None
    return open_runs.get(getattr(config.get("callbacks"), "parent_run_id", None))


@cache
def _create_agent_leaves_a_mark() -> bool:
    """False where LangGraph marks each graph as its own, even one that LangChain's ``create_agent`` made."""
    try:
        return Version(version("langchain")) >= _FIRST_TO_MARK
    except PackageNotFoundError:
        return True  # Nobody can call it.


def _own_tag(graph: Run) -> str | None:
    """The name given to ``create_agent``, unless it is that of a graph above."""
    tag, above = graph.lc_agent_name, graph.parent
    return tag if above is None or tag != above.lc_agent_name or tag == graph.name else None
