"""Prompts as templates: what a prompt's text may hold, what part of an agent it is, and how running code asks for it."""

from __future__ import annotations

from coterie.prompts.parts import EXAMPLES, SYSTEM, check_part, tool_of, tool_part
from coterie.prompts.template import check_template, escape, placeholders, render

__all__ = [
    "EXAMPLES",
    "SYSTEM",
    "check_part",
    "check_template",
    "escape",
    "placeholders",
    "render",
    "tool_of",
    "tool_part",
]
