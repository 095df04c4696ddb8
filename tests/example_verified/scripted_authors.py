"""The scripted model that plays the team of examples/verified_code, and the one that reflects: what they say depends on the prompts.

Each role does its work, but for what its first prompt does not tell it:

- the **coder** says why its loops end if, and only if, its prompt speaks of ``decreases``;
- the **specifier** promises all that was asked if its prompt holds ``Leave no result open.``, else it leaves the last promise out;
- the **repairer** gives back the program that it was given.

The reflecting model adds a lesson to the prompt that it is shown, if it is shown the verifier's complaint that the lesson is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from written_programs import SOLUTIONS

EXAMPLE = Path(__file__).parents[2] / "examples" / "verified_code"
LOOPS = "Begin each loop with invariant(...) and one decreases(...)."
OPEN = "Leave no result open."
ROLES = {"contract of a function": "specifier", "keeps its contract": "coder", "could not prove": "repairer"}
"""Words of a role's prompt → the role."""


def contracts() -> Mapping[str, tuple[list[str], list[str]]]:
    """Function → what its task asks and promises."""
    lines = [line for file in EXAMPLE.glob("tasks/*.jsonl") for line in file.read_text().splitlines()]
    return {
        task["id"]: (task["reference"]["requires"], task["reference"]["ensures"]) for task in map(json.loads, lines)
    }


CONTRACTS = contracts()


def answer(body: Mapping[str, Any]) -> str:
    """What the scripted model answers, as ``ScriptedModel`` takes it."""
    texts = [str(message["content"]) for message in body["messages"]]
    if body["model"] == "reflector":
        return reflection("\n".join(texts))
    system, user = texts[0], texts[-1]
    role = next(role for words, role in ROLES.items() if words in system)
    name = user.partition("(")[0].strip()
    if role == "specifier":
        requires, ensures = CONTRACTS[name]
        promised = ensures if OPEN in system or len(ensures) == 1 else ensures[:-1]
        return "\n".join([*(f"requires {each}" for each in requires), *(f"ensures {each}" for each in promised)])
    if role == "coder":
        lines = SOLUTIONS[name].strip().splitlines()
        return "\n".join(line for line in lines if "decreases" in system or "decreases(" not in line)
    return user.split("\n\nThe verifier says:")[0].split("\n\n")[-1]


def reflection(asked: str) -> str:
    """The prompt that it was shown, with a lesson if it saw what it is for."""
    first = {role: (EXAMPLE / "prompts" / f"{role}.md").read_text().strip() for role in ROLES.values()}
    shown = [role for role, text in first.items() if text.splitlines()[0] in asked]
    role = shown[0] if shown else "coder"
    lesson = {"coder": LOOPS, "specifier": OPEN}.get(role, "Take care.")
    complaint = {"coder": "needs one decreases", "specifier": "allows too much"}.get(role, "")
    text = first[role]
    known = [each for each in (LOOPS, OPEN, "Take care.") if f"{text} {each}" in asked]
    text = " ".join([text, *known])
    # A question that quotes what it said before holds the lesson already.
    added = lesson if complaint in asked or lesson in asked else "Take care."
    proposed = text if added in text else f"{text} {added}"
    return f"```\n{proposed}\n```\n<prompt>{proposed}</prompt>"


assert all(re.search(words, (EXAMPLE / "prompts" / f"{role}.md").read_text()) for words, role in ROLES.items())
