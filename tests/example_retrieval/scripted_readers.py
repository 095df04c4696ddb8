"""The scripted model that plays the team of examples/retrieval_answers, and the one that reflects: what they say depends on the prompts.

- the **searcher** searches for the question's words; its prompt may say anything;
- the **answerer** finds the answer if it stands in the passages, and says it in a whole sentence, which counts as wrong, unless its
  prompt holds ``The answer alone.``;
- the **checker** accepts everything.

The reflecting model adds the lesson to the answerer's prompt if it is shown that role's failures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "retrieval_answers"
ALONE = "The answer alone."
ANSWERS = {
    task["input"]["question"]: task["reference"]["answers"]
    for file in EXAMPLE.glob("tasks/*.jsonl")
    for task in map(json.loads, file.read_text().splitlines())
}


def answer(body: Mapping[str, Any]) -> str:
    """What the scripted model answers, as ``ScriptedModel`` takes it."""
    texts = [str(message["content"]) for message in body["messages"]]
    if body["model"] == "reflector":
        return reflection("\n".join(texts))
    system, user = texts[0], texts[-1]
    question = user.partition("Question: ")[2].splitlines()[0]
    if "search a documentation" in system:
        return question
    if "check an answer" in system:
        return "ok"
    for id_, text in re.findall(r"^\[(\S+)\] [^\n]*\n(.*?)(?=^\[\S+#\S+\] |\Z)", user, re.MULTILINE | re.DOTALL):
        for right in ANSWERS[question]:
            if right in text:
                said = right if ALONE in system else f"It is {right}, as the documentation says."
                return f"ANSWER: {said}\nCITE: {id_}"
    return "ANSWER: not found\nCITE: none"


def reflection(asked: str) -> str:
    """The prompt that it was shown, with the lesson if it is the answerer's and a sentence was refused."""
    first = {path.stem: path.read_text().strip() for path in (EXAMPLE / "prompts").glob("*.md")}
    role = next((role for role, text in first.items() if text.splitlines()[0] in asked), "checker")
    # A question that quotes what it said before holds the lesson already.
    seen = "right is exactly" in asked or ALONE in asked
    proposed = f"{first[role]} {ALONE if role == 'answerer' and seen else 'Take care.'}"
    return f"```\n{proposed}\n```\n<prompt>{proposed}</prompt>"
