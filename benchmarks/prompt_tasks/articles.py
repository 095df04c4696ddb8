"""Articles: one role is fine already, and changing it hurts.

A researcher collects figures, a writer makes sentences of them, an editor prints what can be checked. The researcher leaves
out years and the writer leaves out sources; it is the editor, which rightly cuts what cannot be checked, whose turns
complain. Every line that is added to the editor's prompt makes it cut some articles too short.
"""

from __future__ import annotations

import hashlib
import random

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task
from prompt_tasks.planted import Lesson, PlantedTask, Prompt, Suspicion, ask, client_of, drawn

PROMPTS = {
    "researcher": "You are the researcher of a paper. List the figures of a subject, one a line.",
    "writer": "You are the writer of a paper. Make a sentence of each figure.",
    "editor": "You are the editor of a paper. Print what can be checked.",
}
YEARS = Lesson("researcher", "Give the year of each figure.", shown=r"(?m)^- .* in \d{4}")
SOURCES = Lesson("writer", "Name the source of what a study says.")
CUT, HEADLINE, ADJECTIVES = (
    "Cut every figure without a year.",
    "Begin with a headline.",
    "Use livelier adjectives.",
)
SPOILT_IN_TEN = 4
"""Of ten subjects, those that an editor with one more line in its prompt cuts too short."""


def answer(role: str, prompt: Prompt, told: str) -> str:
    """What each agent does under its prompt."""
    lines = [line for line in told.strip().splitlines() if line.startswith("- ")]
    if role == "researcher":
        # A year in the material is given on if it is part of the figure.
        years = prompt.holds(YEARS)
        kept = [
            line.replace(" (of ", " in ").replace(")", "") if years else line.partition(" (of ")[0] for line in lines
        ]
        return "\n".join([*kept, "Note: there was no headline in the material."])
    if role == "writer":
        kept = [line if prompt.holds(SOURCES) else line.partition(" [")[0] for line in lines]
        return "\n".join([*kept, "Note: the sentences sound rather dry."])
    printed, cut = [], []
    for line in lines:
        (printed if " in " in line and ("study" not in line or "[" in line) else cut).append(line)
    extra = max(0, prompt.text.strip().count("\n"))
    subject = "/".join(sorted(lines))
    spoilt = sum(_drawn(f"{number}/{subject}") < SPOILT_IN_TEN for number in range(extra))
    cut += [printed.pop() for _ in range(min(spoilt, len(printed)))]
    return "\n".join([*printed, *(f"Cut: {line[2:]} cannot be checked." for line in cut)])


def _drawn(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % 10


def team(base_url: str) -> RolloutFunction[..., object]:
    """The paper."""
    client = client_of(base_url)

    @coterie.rollout
    async def paper(task: Task) -> float:
        found = await ask(client, "researcher", PROMPTS["researcher"], task.input)
        written = await ask(client, "writer", PROMPTS["writer"], found)
        printed = await ask(client, "editor", PROMPTS["editor"], written)
        wanted = task.reference["figures"]
        without = sum(line.startswith("- ") and " in " not in line for line in found.splitlines())
        coterie.reward(
            float(not without),
            name="checked",
            role="researcher",
            explanation=f"{without} of {wanted} figures came without their year." if without else None,
        )
        bare = sum("study" in line and "[" not in line for line in written.splitlines())
        coterie.reward(
            float(not bare),
            name="checked",
            role="writer",
            explanation=f"{bare} sentences tell what a study says and name no source." if bare else None,
        )
        missing = wanted - sum(line.startswith("- ") for line in printed.splitlines())
        coterie.reward(
            float(not missing),
            name="checked",
            role="editor",
            explanation=f"{missing} of {wanted} figures were not printed." if missing else None,
        )
        return float(not missing)

    return paper


def _make(dice: random.Random, _split: str, number: int) -> tuple[JSON, JSON]:
    lines = []
    for what in dice.sample(("rain", "sun", "trade", "births", "rents", "wages"), 3):
        value, year = dice.randint(10, 990), dice.randint(1990, 2025)
        lines.append(f"- {what}: {value} in {year}" if number % 5 in (0, 2) else f"- {what}: {value} (of {year})")
    if number % 3 == 1:
        lines[0] = lines[0].replace("- ", "- a study counts ", 1) + f" [Vol. {dice.randint(1, 99)}]"
    return "\n".join(lines), {"figures": len(lines)}


ARTICLES = PlantedTask(
    name="articles",
    asks="one role is fine already: the complaints come from it, and changing it hurts",
    prompts=PROMPTS,
    lessons=(YEARS, SOURCES),
    suspicions=(
        Suspicion(r"figures came without their year", "researcher", YEARS.text),
        Suspicion(r"name no source", "writer", SOURCES.text),
        Suspicion(r"cannot be checked|were not printed", "editor", CUT),
        Suspicion(r"no headline in the material", "researcher", HEADLINE),
        Suspicion(r"sound rather dry", "writer", ADJECTIVES),
    ),
    answer=answer,
    team=team,
    tasks=drawn("articles", _make),
)
