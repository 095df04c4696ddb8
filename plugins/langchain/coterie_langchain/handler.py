"""``CoterieCallbackHandler``: LangChain's callbacks become spans of agents and tools, and announcements of LLM calls.

Only what the framework says is read; nothing of the user's is changed, copied or kept. Spans are hung under each other
by the runs' parents, never by the current context: attaching one in a callback would reach into sibling tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span, Status, StatusCode

from coterie import conventions as names
from coterie.announced import AnnouncedCall, announce, announced_call
from coterie.capture.content import content_rules
from coterie.capture.faults import note_fault
from coterie.episodes import EdgeKind
from coterie.roles import Identity, add_acting_source, child_identity
from coterie.spans import tracer
from coterie_langchain import uncaptured
from coterie_langchain.handoffs import add_edge, goto_targets, is_control_flow, leaves_graph, parent_command
from coterie_langchain.identity import (
    acting_in_running_code,
    identity_in,
    is_part_of_agent,
    kind_of_graph,
    name_of_graph_agent,
    parent_of_new_run,
    speaker_in,
    starts_node,
    tool_caller,
)
from coterie_langchain.runs import Run, RunKind, open_runs
from coterie_langchain.uncaptured import PendingCall

Callback = TypeVar("Callback", bound=Callable[..., None])


def _never_raises(callback: Callback) -> Callback:
    """A fault of ours is logged once and goes no further."""

    @wraps(callback)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            callback(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
            note_fault(f"LangChain's {callback.__name__} could not be recorded")

    return cast("Callback", guarded)


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

    @_never_raises
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

    @_never_raises
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        """A graph, a node or a plain runnable ended well."""
        run = open_runs.take(run_id)
        if run is None:
            return
        if run.kind is RunKind.NODE and not run.is_part:
            _hand_over(run, goto_targets(outputs))
        _end(run)

    @_never_raises
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A graph, a node or a plain runnable was left by an exception."""
        run = open_runs.take(run_id)
        if run is None:
            return
        command = parent_command(error)
        if command is not None:
            _hand_over(run, goto_targets(command))
            if run.agent is run and run.parent is not None and run.parent.agent is not None:
                # The exception goes on upwards, through agents that did not say it.
                run.parent.agent.handed_to |= run.handed_to
        _end(run, error)

    @_never_raises
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
        attributes = {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: tool_name}
        if identity is not None:
            attributes |= _agent_attributes(identity)
        if tool_call_id:
            attributes[names.TOOL_CALL_ID] = tool_call_id
        rules = content_rules()
        if rules.capture_content:
            attributes[names.TOOL_ARGUMENTS] = rules.json_text(inputs) if inputs is not None else rules.text(input_str)
        start_ns = time.time_ns()
        run = Run(
            id=run_id,
            kind=RunKind.TOOL,
            name=tool_name,
            parent=parent,
            start_ns=start_ns,
            span=_start_span(f"execute_tool {tool_name}", parent, attributes, start_ns),
            identity=identity,
            owns_span=True,
            checkpoint_ns=parent.checkpoint_ns if parent else None,
            lc_agent_name=parent.lc_agent_name if parent else None,
            integration=parent.integration if parent else None,
        )
        open_runs.add(run)

    @_never_raises
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """A tool returned."""
        run = open_runs.take(run_id)
        if run is None:
            return
        # Inside an agent's own graph a jump leads to one of its parts, unless it leaves the graph.
        if not run.is_part or leaves_graph(output):
            _hand_over(run, goto_targets(output))
        if run.span is not None:
            rules = content_rules()
            if tool_call_id := getattr(output, "tool_call_id", None):
                run.span.set_attribute(names.TOOL_CALL_ID, tool_call_id)
            if rules.capture_content:
                run.span.set_attribute(names.TOOL_RESULT, rules.text(_result_text(output)))
            if getattr(output, "status", None) == "error":
                run.span.set_attribute(names.ERROR_TYPE, "ToolError")
                run.span.set_status(Status(StatusCode.ERROR))
        _end(run)

    @_never_raises
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A tool was left by an exception."""
        run = open_runs.take(run_id)
        if run is not None:
            _end(run, error)

    @_never_raises
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

    @_never_raises
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

    @_never_raises
    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        """A model answered."""
        run = open_runs.take(run_id)
        if run is None or run.call is None:
            return
        run.call.announced.ended = True
        if run.identity is not None:
            _note_tool_calls(run.root, run.identity, response)
        if not run.call.announced.captured:
            uncaptured.record_answer(run.call, response)

    @_never_raises
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A model call was left by an exception."""
        run = open_runs.take(run_id)
        if run is None or run.call is None:
            return
        run.call.announced.ended = True
        if not run.call.announced.captured:
            uncaptured.record_error(run.call, error)

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
            call=PendingCall(announced, messages, parameters or {}, metadata or {}, start_ns),
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
    attributes = {names.OPERATION: names.INVOKE_WORKFLOW, names.WORKFLOW_NAME: run.name}
    if run.identity is not None:
        attributes |= _agent_attributes(run.identity)
    run.span = _start_span(f"invoke_workflow {run.name}", None, attributes, run.start_ns)
    run.owns_span = True


def _start_node(run: Run, graph: Run, node: str, tags: Sequence[str]) -> None:
    run.kind = RunKind.NODE
    if "langsmith:hidden" in tags:
        # The framework's own nodes, such as the one that takes the input.
        run.is_part = True
        return
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
    graph.kind = kind  # Last, since other threads take it as the sign that all is known.


def _activate(run: Run, identity: Identity) -> None:
    """From here on the run is the activation of this agent, with a span of its own."""
    attributes = {names.OPERATION: names.INVOKE_AGENT, **_agent_attributes(identity)}
    if run.owns_span and run.span is not None:
        run.span.update_name(f"invoke_agent {identity.agent}")
        run.span.set_attributes(attributes)
    else:
        run.span = _start_span(f"invoke_agent {identity.agent}", run.parent, attributes, run.start_ns)
        run.owns_span = True
    run.identity, run.agent, run.tool, run.is_part = identity, run, None, False


def _hand_over(run: Run, targets: Any) -> None:
    """Write that control moves from the agent acting in ``run`` to these nodes, once an activation and target."""
    agent = run.agent
    if agent is None or agent.span is None or run.identity is None:
        return
    for target in targets:
        if target != run.identity.agent and target not in agent.handed_to:
            agent.handed_to.add(target)
            add_edge(agent.span, EdgeKind.HANDOFF, run.identity.agent, target)


def _note_tool_calls(root: Run, identity: Identity, response: Any) -> None:
    for generation in response.generations[0] if response.generations else ():
        for tool_call in getattr(getattr(generation, "message", None), "tool_calls", None) or ():
            root.tool_callers[tool_call["name"]] = identity
            if tool_call.get("id"):
                root.tool_callers[tool_call["id"]] = identity


def _agent_attributes(identity: Identity) -> dict[str, str]:
    return {
        names.AGENT_NAME: identity.agent,
        names.ROLE: identity.role,
        names.AGENT_PATH: identity.path_text,
    }


def _start_span(name: str, parent: Run | None, attributes: Mapping[str, Any], start_ns: int) -> Span:
    above = parent.span if parent is not None else None
    context = trace.set_span_in_context(above) if above is not None else None
    return tracer().start_span(name, context=context, attributes=attributes, start_time=start_ns)


def _end(run: Run, error: BaseException | None = None) -> None:
    if not run.owns_span or run.span is None:
        return
    if error is not None and not is_control_flow(error):
        rules = content_rules()
        run.span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        message = rules.text(f"{type(error).__name__}: {error}"[:2000]) if rules.capture_content else ""
        run.span.set_status(Status(StatusCode.ERROR, message))
    run.span.end()


def _result_text(output: Any) -> str:
    update = getattr(output, "update", None)
    if isinstance(update, dict):
        # A Command: what the tool says to the model is in its last message.
        output = (update.get("messages") or [""])[-1]
    content = getattr(output, "content", output)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
