"""The team that every plugin must record alike, described once: its prompts, its tool, what its model answers, and the
episode that comes of it.

The planner has two ways out: it asks the coder and goes on with what comes back (a delegation), then gives control to
the reviewer (a hand-off). The coder runs the tests with a tool before it answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.testing.canonical import (
    CanonicalEdge,
    CanonicalEpisode,
    CanonicalReward,
    CanonicalToolCall,
    CanonicalTurn,
)

ROLES = ("planner", "coder", "reviewer")
TASK = "Write a function that doubles a number."
"""What the user asks the team."""
ASKS, RUNS, REPORTS, HANDS_OVER, APPROVES = (
    "I ask the coder.",
    "I run the tests.",
    "All tests pass.",
    "Over to the reviewer.",
    "Approved.",
)
HIDDEN_WORD = "h1dden-w0rd"
"""Stands in every prompt, so that a test of masking can look for it."""


@dataclass(frozen=True, slots=True)
class TeamSetting:
    """What a framework's program of the team is built with."""

    base_url: str
    """Of the scripted model, to be written into the model client as a user would."""
    name: str = "team"
    """Distinguishes teams that run at the same time."""
    model: str = "scripted"
    api_key: str = "sk-of-the-user"
    streamed: bool = False
    """Whether the program asks its models for streams."""
    max_retries: int = 0
    """How often the model client's SDK may try again."""
    tool: Callable[[str], str] = field(default=lambda path: f"3 passed in {path}")

    @property
    def prompts(self) -> Mapping[str, str]:
        """Role → system prompt."""
        return {role: f"You are the {role}. {HIDDEN_WORD} [{role} of {self.name}]" for role in ROLES}

    def run_tests(self, path: str) -> str:
        """Run the tests of a file. (The coder's tool; the program offers it under this name.)"""
        return self.tool(path)


def team_answer(body: Mapping[str, Any]) -> Any:
    """What the described team's model answers to a request, in whichever API it comes, as ``ScriptedModel`` takes it.

    Who asks is read from the system prompt, how far the agent is from the tool results in its conversation, and which
    tool delegates or hands over from the names of the tools that are offered.
    """
    found = speaker(body)
    if found is None:
        return 400
    role, team = found
    tools = dict(map(_named_schema, body.get("tools") or ()))
    seen_result = any(_is_tool_result(message) for message in _messages(body))
    match role, seen_result:
        case "planner", False:
            return _calling(ASKS, tools, _delegates, {"coworker": "Coder"})
        case "planner", True:
            return _calling(HANDS_OVER, tools, _hands_over, {})
        case "coder", False:
            return _calling(RUNS, tools, lambda name: "run_tests" in name, {"path": f"{team}.py"})
        case "coder", True:
            return REPORTS
    return APPROVES


def speaker(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Role and team of who makes a request, from the mark in its system prompt."""
    texts = [str(body.get("instructions") or ""), str(body.get("system") or "")]
    texts += [str(message.get("content")) for message in _messages(body) if message.get("role") in _SYSTEM]
    texts += [str(message.get("content")) for message in _messages(body) if message.get("role") not in _SYSTEM]
    marks = (re.search(r"\[(\w+) of ([\w-]+)\]", text) for text in texts)
    return next(((mark[1], mark[2]) for mark in marks if mark), None)


def expected_episode(team: str = "team", *, exact: bool = True, rewarded: bool = True) -> CanonicalEpisode:
    """The canonical episode of the described team.

    Args:
        team: the setting's name.
        exact: whether the model gave token ids.
        rewarded: whether ``reward_team`` was called.
    """
    return CanonicalEpisode(
        turns=(
            CanonicalTurn("planner", 0, "planner", ASKS, exact),
            CanonicalTurn("coder", 0, "planner/coder", RUNS, exact),
            CanonicalTurn("coder", 1, "planner/coder", REPORTS, exact),
            CanonicalTurn("planner", 1, "planner", HANDS_OVER, exact),
            CanonicalTurn("reviewer", 0, "reviewer", APPROVES, exact),
        ),
        edges=(
            CanonicalEdge("delegation", "planner", "coder"),
            CanonicalEdge("handoff", "planner", "reviewer"),
        ),
        tool_calls=(
            CanonicalToolCall("run_tests", "planner/coder", f'{{"path": "{team}.py"}}', f"3 passed in {team}.py"),
        ),
        rewards=(CanonicalReward("", "reward", 1.0), CanonicalReward("coder", "tests", 0.5)) if rewarded else (),
    )


CALLS = 5
"""LLM calls of one run of the team."""

_SYSTEM = ("system", "developer")


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = body.get("messages", body.get("input")) or ()
    return [] if isinstance(given, str) else [message for message in given if isinstance(message, Mapping)]


def _is_tool_result(message: Mapping[str, Any]) -> bool:
    if message.get("role") == "tool" or message.get("type") == "function_call_output":
        return True
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
    )


def _named_schema(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function", tool)
    return str(function.get("name")), function.get("parameters") or function.get("input_schema") or {}


def _delegates(name: str) -> bool:
    return "coder" in name or "delegate" in name


def _hands_over(name: str) -> bool:
    return "reviewer" in name


def _calling(
    text: str,
    tools: Mapping[str, Mapping[str, Any]],
    fits: Callable[[str], bool],
    arguments: Mapping[str, str],
) -> Any:
    """An answer that says ``text`` and calls the first tool that fits, if one is offered."""
    name = next((name for name in tools if fits(name.lower())), None)
    if name is None:
        return text
    filled = {
        parameter: arguments.get(parameter, "Write it.")
        for parameter, schema in (tools[name].get("properties") or {}).items()
        if parameter in arguments or schema.get("type") == "string"
    }
    return {"content": text, "tool_calls": [{"name": name, "arguments": filled}]}
