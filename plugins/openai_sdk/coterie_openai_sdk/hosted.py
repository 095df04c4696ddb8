"""Tools that the model's provider runs by itself: their calls are part of the model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import Span

from coterie import structure
from coterie.roles import Identity
from coterie.vocabulary import JSON

_HOSTED: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "web_search_call": ("web_search", ("action",), ""),
    "file_search_call": ("file_search", ("queries",), "results"),
    "code_interpreter_call": ("code_interpreter", ("code",), "outputs"),
    "image_generation_call": ("image_generation", ("revised_prompt",), ""),
}
"""Type of output item → the tool's name, the fields that are its arguments, the field that is its result."""


def record_hosted_tools(response: Any, identity: Identity, parent: Span) -> None:
    """Make the span of each hosted tool call in a ``ModelResponse``. When it ran is not known: the span has no length."""
    for item in response.output:
        kind = getattr(item, "type", None)
        if kind == "mcp_call":
            call = structure.start_tool(
                item.name, identity=identity, arguments=item.arguments, call_id=item.id, parent=parent
            )
            if item.error:
                structure.set_error(call, str(item.error), error_type="ToolError")
            structure.end_tool(call, item.output)
        elif isinstance(kind, str) and kind in _HOSTED:
            name, arguments, result = _HOSTED[kind]
            found = {field: value for field in arguments if (value := _plain(getattr(item, field, None))) is not None}
            call = structure.start_tool(name, identity=identity, arguments=found, call_id=item.id, parent=parent)
            if getattr(item, "status", None) == "failed":
                structure.set_error(call, f"{name} failed", error_type="ToolError")
            structure.end_tool(call, _plain(getattr(item, result, None)) if result else None)


def _plain(value: Any) -> JSON:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else value
