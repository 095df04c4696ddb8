"""``random_edits``: sentences of the prompts are left out, doubled, swapped or added, and what does no worse is kept.

A baseline: a hill climb without a model and without a look at the traces. What a search gains beyond this it owes to what it
reads, and not to having tried many texts on the same tasks::

    best = seed
    `steps` times:
        child = best with one random edit of one random prompt
        best  = child  if  mean(child on a batch) >= mean(best on the same batch)

The comparison lets equals pass, so that the walk does not stay where it began; so the last is not the best, and all that were
ever best are finalists in the order of their means.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

from pydantic import Field, PositiveInt

from coterie.prompts import placeholders
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Optimiser, Study

AUTHOR = "optimiser:random_edits"
PHRASES = (
    "Think step by step.",
    "Be concise.",
    "Check your answer before you give it.",
    "Take care.",
    "Answer in plain words.",
    "Read the task twice.",
)
"""What an edit may add."""


def make(steps: PositiveInt = 24, batch: Annotated[int, Field(ge=1)] = 4, finalists: PositiveInt = 4) -> Optimiser:
    """A hill climb by random edits.

    Args:
        steps: Edits that are tried.
        batch: Train tasks that an edit is judged on.
        finalists: How many candidates it gives, at most.
    """

    async def random_edits(study: Study) -> Sequence[Candidate]:
        kept: dict[str, tuple[float, int, Candidate]] = {}
        best = study.seed
        for step in range(steps):
            tasks = study.random.sample(list(study.train), min(batch, len(study.train)))
            child = _child(best, study.random)
            try:
                worth_child = fmean(trial.score for trial in await study.evaluate(child, tasks))
                worth_best = fmean(trial.score for trial in await study.evaluate(best, tasks))
            except BudgetSpentError as error:
                study.note(f"random_edits: the budget is spent after {step} of {steps} edits: {error}")
                break
            if worth_child >= worth_best:
                best = child
                kept[child.id] = (worth_child, step, child)
        return [candidate for _, _, candidate in sorted(kept.values(), key=lambda one: (-one[0], -one[1]))][:finalists]

    return random_edits


def _child(parent: Candidate, chance: random.Random) -> Candidate:
    name = chance.choice(sorted(parent.texts))
    text, done = edited(parent.texts[name], chance)
    return Candidate(
        {**parent.texts, name: text}, parents=(parent.id,), author=AUTHOR, why={name: f"at random: {done}"}
    )


def edited(text: str, chance: random.Random) -> tuple[str, str]:
    """A text with one random edit, and what was done. A sentence with a placeholder is never left out or doubled."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]
    free = [index for index, sentence in enumerate(sentences) if not placeholders(sentence)]
    edit = chance.choice(["add", "leave out", "double", "swap"] if len(sentences) > 1 and free else ["add"])
    if edit == "add":
        phrase = chance.choice(PHRASES)
        sentences.insert(chance.randint(0, len(sentences)), phrase)
        return " ".join(sentences), f"added {phrase!r}"
    if edit == "swap":
        one, other = chance.sample(range(len(sentences)), 2)
        sentences[one], sentences[other] = sentences[other], sentences[one]
        return " ".join(sentences), "swapped two sentences"
    index = chance.choice(free)
    sentence = sentences[index]
    sentences[index : index + 1] = [] if edit == "leave out" else [sentence, sentence]
    return " ".join(sentences), f"{'left out' if edit == 'leave out' else 'doubled'} {sentence!r}"
