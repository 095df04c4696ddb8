"""A prompt's new text, asked of the reflecting model: taken out of its answer, checked, and asked for once more if wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from coterie.errors import PromptError
from coterie.prompts import SYSTEM, check_template, placeholders, render, tool_of
from coterie_trainers.prompts.study import ReflectionError, Study, TunedPrompt

ANSWER_FORM = "Answer with the whole new text between <prompt> and </prompt>, and nothing else between them."
"""What a question must end with, so that ``propose`` finds the text in the answer."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A new text that can be used."""

    text: str
    why: str
    """What the reflecting model said before it; empty if it said nothing else."""


async def propose(study: Study, question: str, prompt: TunedPrompt, *, purpose: str) -> str | None:
    """The text alone of what ``proposal`` gives."""
    found = await proposal(study, question, prompt, purpose=purpose)
    return None if found is None else found.text


async def proposal(study: Study, question: str, prompt: TunedPrompt, *, purpose: str) -> Proposal | None:
    """A new text for a prompt; None, with a note to the user, where two answers held none that can be used.

    A text can be used if it stands in the form that ``ANSWER_FORM`` asks for, is not empty, and has exactly the prompt's
    placeholders. The second question says what was wrong with the first answer.

    Args:
        study: Reflects.
        question: The whole question, ``ANSWER_FORM`` included.
        prompt: What the text is for.
        purpose: As for ``Study.reflect``.

    Raises:
        BudgetSpentError: the budget is spent.
    """
    messages = [{"role": "user", "content": question}]
    for _ in range(2):
        try:
            answer = await study.reflect(messages, purpose=purpose)
        except ReflectionError as error:
            study.note(f"{purpose} of {prompt.name!r}: {error}")
            return None
        try:
            return Proposal(text_in(answer, prompt), answer.partition("<prompt>")[0].strip())
        except PromptError as error:
            wrong = str(error)
        messages = [
            *messages,
            {"role": "assistant", "content": answer},
            {"role": "user", "content": f"This cannot be used. {wrong} {ANSWER_FORM}"},
        ]
    study.note(f"{purpose} of {prompt.name!r}: the reflecting model's proposal cannot be used. {wrong}")
    return None


def question(template: str, prompt: TunedPrompt, values: Mapping[str, object]) -> str:
    """What a new text is asked for with: a template filled, and what an answer must be like, whoever wrote the template."""
    kept = ", ".join(f"{{{{{name}}}}}" for name in prompt.placeholders)
    rule = f"These placeholders must stand in it exactly so: {kept}. There are no others.\n" if kept else ""
    return f"{filled(template, prompt, values).rstrip()}\n\n{rule}{ANSWER_FORM}"


def filled(template: str, prompt: TunedPrompt, values: Mapping[str, object]) -> str:
    """A template about a prompt: ``{{role}}`` and ``{{part}}`` are known, the rest is in ``values``; it need not use all."""
    known = {"role": prompt.role, "part": _named(prompt.part), **values}
    return render(template, {name: known[name] for name in placeholders(template)})


def text_in(answer: str, prompt: TunedPrompt) -> str:
    """The text that an answer proposes for a prompt.

    Raises:
        PromptError: there is none, it is empty, or its placeholders are not the prompt's.
    """
    # Greedy: a prompt may itself speak of such tags. Some models fence whatever they write.
    found = re.search(r"<prompt>(.*)</prompt>", answer, re.DOTALL) or re.search(r"```\w*\n(.*)\n```", answer, re.DOTALL)
    if found is None:
        raise PromptError("The answer has no text between <prompt> and </prompt>.")
    text = found[1].strip()
    if not text:
        raise PromptError("The text between <prompt> and </prompt> is empty.")
    check_template(text, prompt.placeholders, of=f"the new text of {prompt.name!r}")
    return text


def _named(part: str) -> str:
    tool = tool_of(part)
    if tool is not None:
        return f"the description of the tool {tool!r}"
    return "the system prompt" if part == SYSTEM else "the worked examples"
