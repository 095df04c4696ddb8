"""``CoterieCallbackHandler``: LangChain's callbacks become spans of agents and tools, and announcements of LLM calls.

Only what the framework says is read; nothing of the user's is changed, copied or kept. Spans are hung under each other
by the runs' parents, never by the current context: attaching one in a callback would reach into sibling tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Any
from uuid import UUID
from weakref import ref

from langchain_core.callbacks import BaseCallbackHandler
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie import conventions as names
from coterie.announced import AnnouncedCall, announce, announced_call
from coterie.capture.faults import guarded
from coterie.episodes import EdgeKind
from coterie.roles import Identity, add_acting_source, child_identity
from coterie.scope import current_scope
from coterie.structure import (
    add_edge,
    agent_attributes,
    end,
    end_tool,
    mark_tool_as_edge,
    set_error,
    start_agent,
    start_tool,
    start_workflow,
)
from coterie.uncaptured import record_told_answer, record_told_error
from coterie_langchain.handoffs import goto_targets, is_control_flow, leaves_graph, parent_command
from coterie_langchain.identity import (
    acting_in_running_code,
    agent_of_activation,
    identity_in,
    is_part_of_agent,
    kind_of_graph,
    name_of_graph_agent,
    parent_of_new_run,
    speaker_in,
    starts_node,
    tool_caller,
)
from coterie_langchain.moves import Moves, write_moves
from coterie_langchain.runs import Run, RunKind, open_runs
from coterie_langchain.supersteps import watch_supersteps
from coterie_langchain.uncaptured import told_answer, told_call


class CoterieCallbackHandler(BaseCallbackHandler):
    """Records the agents, tools and hand-offs of LangChain and LangGraph runs, and announces their LLM calls.

    ``LangChainInstrumentor`` installs one for all runs. It may also be given by hand, in
    ``config={"callbacks": [CoterieCallbackHandler()]}``; a run that has several is recorded once.
    """

    run_inline = True  # An announcement made in another task or thread would not reach the call.

    def __init__(self) -> None:
        super().__init__()
        self._retired = False
        add_acting_source(acting_in_running_code)

    def retire(self) -> None:
        """Take no more runs; those under way are recorded to their end."""
        self._retired = True

    @property
    def ignore_retriever(self) -> bool:
        """Retrievers are no agents."""
        return True

    @property
    def ignore_retry(self) -> bool:
        """Retries of runnables: each try is a run of its own."""
        return True

    @property
    def ignore_custom_event(self) -> bool:
        """The user's own events."""
        return True

    @guarded
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **_: Any,
    ) -> None:
        """A graph, a node or a plain runnable starts."""
        if self._leaves_out(run_id):
            return
        metadata = metadata or {}
        parent = parent_of_new_run(parent_run_id)
        run = Run(
            id=run_id,
            kind=RunKind.CHAIN,
            name=name or (serialized or {}).get("name") or "chain",
            parent=parent,
            start_ns=time.time_ns(),
            span=parent.span if parent else None,
            identity=parent.identity if parent else None,
            checkpoint_ns=metadata.get("langgraph_checkpoint_ns"),
            lc_agent_name=metadata.get("lc_agent_name"),
            integration=metadata.get("ls_integration"),
        )
        if parent is None:
            _start_workflow(run, metadata)
        elif starts_node(parent, metadata):
            _start_node(run, parent, metadata.get("langgraph_node") or run.name, tags or ())
        open_runs.add(run)

    @guarded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002
        """A graph, a node or a plain runnable ended well."""
        run = open_runs.take(run_id)
        if run is not None:
            write_moves(run)
            _end(run)

    @guarded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A graph, a node or a plain runnable was left by an exception."""
        run = open_runs.take(run_id)
        if run is None:
            return
        command = parent_command(error)
        if command is not None:
            _leave(run, error, tuple(goto_targets(command)))
        write_moves(run)
        _end(run, error)

    @guarded
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        name: str | None = None,
        tool_call_id: str | None = None,
        **_: Any,
    ) -> None:
        """A tool is called."""
        if self._leaves_out(run_id):
            return
        parent = parent_of_new_run(parent_run_id)
        tool_name = (serialized or {}).get("name") or name or "tool"
        identity = tool_caller(parent, tool_name, tool_call_id)
        start_ns = time.time_ns()
        run = Run(
            id=run_id,
            kind=RunKind.TOOL,
            name=tool_name,
            parent=parent,
            start_ns=start_ns,
            span=start_tool(
                tool_name,
                identity=identity,
                arguments=inputs if inputs is not None else input_str,
                call_id=tool_call_id,
                parent=parent.span if parent else None,
                start_ns=start_ns,
            ),
            identity=identity,
            owns_span=True,
            checkpoint_ns=parent.checkpoint_ns if parent else None,
            lc_agent_name=parent.lc_agent_name if parent else None,
            integration=parent.integration if parent else None,
        )
        open_runs.add(run)

    @guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """A tool returned."""
        run = open_runs.take(run_id)
        if run is None:
            return
        if run.span is None:
            return
        # Inside an agent's own graph a jump leads to one of its parts, unless it leaves the graph.
        if not run.is_part or leaves_graph(output):
            own = run.identity.agent if run.identity is not None else None
            targets = [target for target in goto_targets(output) if target != own]
            if targets:
                mark_tool_as_edge(run.span, EdgeKind.HANDOFF, targets[0] if len(targets) == 1 else None)
        if tool_call_id := getattr(output, "tool_call_id", None):
            run.span.set_attribute(names.TOOL_CALL_ID, tool_call_id)
        text = _result_text(output)
        if getattr(output, "status", None) == "error":
            # The framework has made a message of the tool's exception.
            set_error(run.span, text or "", error_type="ToolError")
        end_tool(run.span, text)

    @guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A tool was left by an exception."""
        run = open_runs.take(run_id)
        if run is not None:
            _end(run, error)

    @guarded
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,  # noqa: ARG002
        messages: list[list[Any]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        **_: Any,
    ) -> None:
        """A chat model is called."""
        self._model_starts(
            run_id, parent_run_id, messages[0] if messages else [], metadata, invocation_params, batch_size
        )

    @guarded
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,  # noqa: ARG002
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        **_: Any,
    ) -> None:
        """A model of texts is called."""
        self._model_starts(run_id, parent_run_id, prompts, metadata, invocation_params, batch_size)

    @guarded
    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        """A model answered."""
        run = open_runs.take(run_id)
        if run is None or run.announced is None:
            return
        run.announced.ended = True
        if run.identity is not None:
            _note_tool_calls(run.root, run.identity, response)
        if not run.announced.captured and run.told is not None:
            record_told_answer(run.told(), told_answer(response))

    @guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A model call was left by an exception."""
        run = open_runs.take(run_id)
        if run is None or run.announced is None:
            return
        run.announced.ended = True
        if not run.announced.captured and run.told is not None:
            record_told_error(run.told(), error)

    def _leaves_out(self, run_id: UUID) -> bool:
        # A run that is known already has a second handler.
        return self._retired or run_id in open_runs or not is_instrumentation_enabled()

    def _model_starts(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        messages: Sequence[Any],
        metadata: Mapping[str, Any] | None,
        parameters: Mapping[str, Any] | None,
        batch_size: int,
    ) -> None:
        if self._leaves_out(run_id):
            return
        parent = parent_of_new_run(parent_run_id)
        identity = speaker_in(parent)
        span = parent.span if parent else None
        announced = announced_call() if batch_size > 1 else None
        if announced is None or announced.identity != identity or announced.parent is not span:
            # The calls of one batch are made after all of them were announced, so they share an announcement.
            announced = AnnouncedCall(identity, parent=span)
        start_ns = time.time_ns()
        run = Run(
            id=run_id,
            kind=RunKind.MODEL,
            name="chat",
            parent=parent,
            start_ns=start_ns,
            span=span,
            identity=identity,
            announced=announced,
            told=partial(told_call, announced, messages, parameters or {}, metadata or {}, start_ns),
        )
        if run.agent is not None:
            run.agent.has_spoken = True
        open_runs.add(run)
        announce(announced)


_finding_out = RLock()


def _start_workflow(run: Run, metadata: Mapping[str, Any]) -> None:
    run.identity = identity_in(None)
    node = metadata.get("langgraph_node")
    if run.identity is None and node is not None:
        # Recording began in the middle of a graph's run.
        run.identity = child_identity(metadata.get("lc_agent_name") or node)
    if (thread := metadata.get("thread_id")) is not None:
        scope = current_scope()
        run.thread = (scope.attempt_id if scope is not None else None, str(thread))
    run.span = start_workflow(run.name, identity=run.identity, start_ns=run.start_ns)
    run.owns_span = True


def _start_node(run: Run, graph: Run, node: str, tags: Sequence[str]) -> None:
    run.kind = RunKind.NODE
    if "langsmith:hidden" in tags:
        # The framework's own nodes, such as the one that takes the input.
        run.is_part = True
        return
    watch_supersteps()
    if graph.kind is RunKind.CHAIN:
        with _finding_out:  # Several first nodes may start at once, each in its thread.
            if graph.kind is RunKind.CHAIN:
                _first_node_starts(graph, node)
        run.span, run.identity, run.agent = graph.span, graph.identity, graph.agent
        run.tool, run.is_part = graph.tool, graph.is_part
    if is_part_of_agent(graph, node):
        run.is_part = True
    else:
        _activate(run, child_identity(node, identity_in(run)))
    if graph.moves is not None and run.checkpoint_ns is not None:
        graph.moves.activations[run.checkpoint_ns] = run


def _first_node_starts(graph: Run, node: str) -> None:
    """What looked like a plain runnable is a graph: find out which, and make its span if it is an agent."""
    kind = kind_of_graph(graph, node)
    agent, around = name_of_graph_agent(graph, kind), graph.agent
    is_around = around is not None and around.identity is not None and around.identity.agent == agent
    if agent is not None and (graph.tool is not None or not is_around):
        caller = identity_in(graph.parent)
        delegated = graph.tool is not None or (around is not None and around.has_spoken)
        _activate(graph, child_identity(agent, caller))
        if delegated and caller is not None and around is not None and around.span is not None:
            add_edge(around.span, EdgeKind.DELEGATION, caller.agent, agent)
    if kind is not RunKind.CREATED_AGENT:
        graph.moves = Moves()
    graph.kind = kind  # Last, since other threads take it as the sign that all is known.


def _activate(run: Run, identity: Identity) -> None:
    """From here on the run is the activation of this agent, with a span of its own."""
    if run.owns_span and run.span is not None:
        run.span.update_name(f"invoke_agent {identity.agent}")
        run.span.set_attributes({names.OPERATION: names.INVOKE_AGENT, **agent_attributes(identity)})
    else:
        above = run.parent.span if run.parent is not None else None
        run.span = start_agent(identity, parent=above, start_ns=run.start_ns)
        run.owns_span = True
    run.identity, run.agent, run.tool, run.is_part = identity, run, None, False


def _leave(run: Run, error: BaseException, targets: tuple[str, ...]) -> None:
    """Note who said a ``Command`` to a graph above, which goes up through runs that did not say it."""
    came_from_below = run.leaving is not None and run.leaving[0]() is error
    run.left_by = run.leaving[1] if run.leaving is not None and came_from_below else agent_of_activation(run)
    run.left_for = targets
    if run.parent is not None:
        run.parent.leaving = (ref(error), run.left_by)


def _note_tool_calls(root: Run, identity: Identity, response: Any) -> None:
    for generation in response.generations[0] if response.generations else ():
        for tool_call in getattr(getattr(generation, "message", None), "tool_calls", None) or ():
            root.tool_callers[tool_call["name"]] = identity
            if tool_call.get("id"):
                root.tool_callers[tool_call["id"]] = identity


def _end(run: Run, error: BaseException | None = None) -> None:
    if run.owns_span and run.span is not None:
        end(run.span, None if error is None or is_control_flow(error) else error)


def _result_text(output: Any) -> str | None:
    if hasattr(output, "goto"):
        # A Command: what the tool says to the model is the last message of its update, if there is one.
        messages = output.update.get("messages") if isinstance(output.update, dict) else None
        output = messages[-1] if isinstance(messages, list) and messages else None
    content = getattr(output, "content", output)
    if content is None or isinstance(content, str):
        return content
    return json.dumps(content, ensure_ascii=False, default=str)
