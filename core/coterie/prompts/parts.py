"""The parts of an agent that a prompt may be: its system text, the description of one of its tools, its examples."""

from __future__ import annotations

from coterie.errors import PromptError

SYSTEM = "system"
"""Stands in place of the role's system message."""
EXAMPLES = "examples"
"""Worked examples (few-shot), appended to the role's system text."""
_TOOL = "tool/"


def tool_part(tool: str) -> str:
    """The part that stands in place of the description of the tool of this name, as the model sees the name."""
    return check_part(_TOOL + tool)


def tool_of(part: str) -> str | None:
    """The tool that a part describes; None for the other parts."""
    return part.removeprefix(_TOOL) if part.startswith(_TOOL) else None


def check_part(part: object, *, of: str = "The prompt") -> str:
    """A part as it is, if there is such a part.

    Args:
        part: what somebody wrote.
        of: whose it is, for the message.

    Raises:
        PromptError: there is none.
    """
    if isinstance(part, str) and (part in (SYSTEM, EXAMPLES) or tool_of(part)):
        return part
    raise PromptError(f"{of} has the part {part!r}; there are 'system', 'examples' and 'tool/<name of the tool>'.")
