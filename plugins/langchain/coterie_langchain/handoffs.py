"""What LangGraph's ``Command`` says, returned or raised, about where control goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def goto_targets(output: Any) -> Iterator[str]:
    """The nodes to which what a node or tool returned moves control: ``Command``s, alone or in a list."""
    for command in _commands(output):
        yield from _names(command.goto)


def leaves_graph(output: Any) -> bool:
    """True if there is a ``Command`` to the graph above."""
    return any(command.graph == command.PARENT for command in _commands(output))


def parent_command(error: BaseException) -> Any:
    """The ``Command`` that travels to the graph above as an exception, or None if it is another exception."""
    errors = sys.modules.get("langgraph.errors")
    if errors is None or not isinstance(error, errors.ParentCommand):
        return None
    return error.args[0] if error.args else None


def is_control_flow(error: BaseException) -> bool:
    """True for exceptions that are LangGraph's way to move control or to pause, and for a stream closed early."""
    errors = sys.modules.get("langgraph.errors")
    return isinstance(error, GeneratorExit) or (errors is not None and isinstance(error, errors.GraphBubbleUp))


def _commands(output: Any) -> Iterator[Any]:
    types = sys.modules.get("langgraph.types")
    if types is None or output is None or isinstance(output, (dict, str)):
        return
    for item in output if isinstance(output, (list, tuple)) else (output,):
        if isinstance(item, types.Command):
            yield item


def _names(goto: Any) -> Iterator[str]:
    for target in (goto,) if isinstance(goto, str) or not isinstance(goto, (list, tuple)) else goto:
        name = target if isinstance(target, str) else getattr(target, "node", None)
        if isinstance(name, str) and name != "__end__":
            yield name
