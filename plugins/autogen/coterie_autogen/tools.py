"""Tool calls: as an ``AssistantAgent`` makes them, as a workbench makes them, and tools that are run by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import note_fault
from coterie.episodes import EdgeKind
from coterie.roles import current_acting
from coterie.structure import mark_tool_as_edge, start_tool
from coterie.vocabulary import JSON
from coterie_autogen.registering import is_recorded
from coterie_autogen.runs import Activation, ToolRun, current_frame
from coterie_autogen.watching import Watch, beginning, watched_call, watched_stream

CODE_EXECUTION = "execute_code"
"""The tool name under which a ``CodeExecutorAgent``'s running of code stands in episodes."""

Run = TypeVar("Run", bound=ToolRun)


def around_tool_execution(original: Callable[..., Any]) -> Callable[..., Any]:
    """``AssistantAgent._execute_tool_call``: it knows the model's call, unknown tools and arguments that are no JSON."""

    async def execute_tool_call(*args: Any, **kwargs: Any) -> Any:
        return await watched_call(_begin_asked(*args, **kwargs), lambda: original(*args, **kwargs))

    return execute_tool_call


def around_workbench_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Workbench.call_tool`` of agents that call it by themselves."""

    async def call_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await watched_call(_begin_in_workbench(*args, **kwargs), lambda: original(self, *args, **kwargs))

    return call_tool


def around_workbench_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    """``StreamWorkbench.call_tool_stream``."""

    def call_tool_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watched_stream(partial(_begin_in_workbench, *args, **kwargs), original(self, *args, **kwargs))

    return call_tool_stream


def around_tool_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """``BaseTool.run_json``."""

    async def run_json(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await watched_call(_begin_itself(self, *args, **kwargs), lambda: original(self, *args, **kwargs))

    return run_json


def around_tool_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    """``BaseStreamTool.run_json_stream``."""

    def run_json_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watched_stream(partial(_begin_itself, self, *args, **kwargs), original(self, *args, **kwargs))

    return run_json_stream


def around_function(original: Callable[..., Any]) -> Callable[..., Any]:
    """``FunctionTool.run``, which calls a plain function in a thread without the context: there it gets it."""

    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await original(_with_context(self), *args, **kwargs)

    return run


def around_code_execution(original: Callable[..., Any]) -> Callable[..., Any]:
    """``CodeExecutorAgent.execute_code_block``: the running of code from messages is told as a tool call."""

    async def execute_code_block(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await watched_call(_begin_code(*args, **kwargs), lambda: original(self, *args, **kwargs))

    return execute_code_block


@dataclass(slots=True, eq=False)
class _CodeRun(ToolRun):
    """One execution of code blocks."""

    def saw(self, item: Any) -> None:
        self.result, self.failed = item.output, item.exit_code != 0


@dataclass(slots=True, eq=False)
class _AskedTool(ToolRun):
    """A tool call that a model asked for; its result is what the model gets."""

    def saw(self, item: Any) -> None:
        _, result = item
        self.result, self.failed = str(result.content), bool(result.is_error)


@dataclass(slots=True, eq=False)
class _WorkbenchTool(ToolRun):
    """A tool call in a workbench."""

    def saw(self, item: Any) -> None:
        if hasattr(item, "to_text"):
            self.result, self.failed = item.to_text(), bool(item.is_error)


@dataclass(slots=True, eq=False)
class _PlainTool(ToolRun):
    """A tool that is run by itself."""

    value: Any = None

    def saw(self, item: Any) -> None:
        self.value = item

    def ended(self, error: BaseException | None) -> None:
        if error is None and self.value is not None:
            self.result = self.tool.return_value_as_string(self.value)
        ToolRun.ended(self, error)


@dataclass(slots=True, eq=False)
class _Inside:
    """A tool that runs as the call that is under way already."""

    call: ToolRun

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def saw(self, item: Any) -> None: ...

    def ended(self, error: BaseException | None) -> None:
        self.call.error = self.call.error or error


@beginning
def _begin_asked(*args: Any, **kwargs: Any) -> Watch | None:
    asked = kwargs["tool_call"] if "tool_call" in kwargs else args[0]
    run = _begin(_AskedTool, asked.name, asked.arguments, asked.id)
    frame = current_frame()
    if run is not None and isinstance(frame, Activation):
        handoff = (getattr(frame.agent, "_handoffs", None) or {}).get(asked.name)
        if handoff is not None:
            mark_tool_as_edge(run.span, EdgeKind.HANDOFF, handoff.target)
    return run


@beginning
def _begin_in_workbench(
    name: str, arguments: Mapping[str, Any] | None = None, _: Any = None, call_id: str | None = None, **__: Any
) -> Watch | None:
    frame = current_frame()
    if isinstance(frame, ToolRun) and frame.tool is None:
        return None
    return _begin(_WorkbenchTool, name, dict(arguments or {}), call_id)


@beginning
def _begin_itself(
    tool: Any, args: Mapping[str, Any], _: Any = None, call_id: str | None = None, **__: Any
) -> Watch | None:
    frame = current_frame()
    if isinstance(frame, ToolRun) and frame.tool in (None, tool):
        # The call of an agent or workbench gets to its tool, or a tool of the user's to the method that it overrides.
        frame.tool = tool
        return _Inside(frame)
    run = _begin(_PlainTool, tool.name, dict(args), call_id)
    if run is not None:
        run.tool = tool
    return run


@beginning
def _begin_code(code_blocks: Sequence[Any], *_: Any, **__: Any) -> Watch | None:
    blocks = [{"language": block.language, "code": block.code} for block in code_blocks]
    return _begin(_CodeRun, CODE_EXECUTION, {"code_blocks": blocks}, None)


def _begin(kind: type[Run], name: str, arguments: JSON, call_id: str | None) -> Run | None:
    frame = current_frame()
    if not is_instrumentation_enabled() or not (frame is not None or is_recorded(None)):
        return None
    acting = current_acting()
    identity = acting.identity if acting is not None else None
    parent = frame.open() if isinstance(frame, Activation) else None
    span = start_tool(name, identity=identity, arguments=arguments, call_id=call_id, parent=parent)
    return kind(span, identity)


def _with_context(tool: Any) -> Any:
    """The tool itself, or for a plain function a copy of it whose function runs in a copy of the present context."""
    try:
        function = tool._func
        if iscoroutinefunction(function) or not (current_frame() is not None or is_recorded(None)):
            return tool
        in_context = copy.copy(tool)
        in_context._func = partial(copy_context().run, function)
        return in_context
    except Exception:  # noqa: BLE001 - the tool runs as it is
        note_fault("AutoGen: a tool's function runs without its context, so calls in it may go unattributed")
        return tool
