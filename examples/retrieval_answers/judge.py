"""The rewards, by rule: the answer is one of those that count, and the cited passage holds it.

    team        half for the right answer, half more if the passage that it cites was found and holds it
    searcher    1 if the last search found a passage that holds the answer
    answerer    1 for the right answer with a citation that holds it, a half without; where the passages do not hold the answer,
                1 for saying so (an empty answer, or "not found")
    checker     1 if it accepted what is right, or sent back what is wrong

Each comes with the reason: that is what an optimiser reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents import Answer, State, accepted
from corpus import Passage, index

import coterie


def judge(reference: Mapping[str, Any], state: State) -> float:
    """Reward the roles, and give the team's reward.

    Args:
        reference: The task's ``answers``: any of them counts.
        state: The graph's last state.
    """
    answers = reference["answers"]
    found, answer = state["found"][-1], state["answers"][-1]
    held = [passage.id for passage in found if holds(passage, answers)]
    right, backed = is_right(answer, answers), is_backed(answer, found, answers)
    everywhere = [passage.id for passage in index() if holds(passage, answers)][:3]
    said = f"searched for {state['queries'][-1]!r}; found {', '.join(passage.id for passage in found) or 'nothing'}"
    where = f"the answer {answers[0]!r} stands in {', '.join(everywhere)}"
    coterie.reward(float(bool(held)), name="search", role="searcher", explanation=f"{said}; {where}")
    coterie.reward(
        answer_value(right, backed, bool(held), answer),
        name="answer",
        role="answerer",
        explanation=f"{answer['text']!r} cites {answer['cited'] or 'nothing'}; right is exactly {answers[0]!r}, "
        + (f"and it stands in {held[0]}" if held else "but it stood in none of the passages: say 'not found'"),
    )
    verdict = accepted(state["reviews"][-1])
    coterie.reward(
        float(verdict == (right and backed)),
        name="check",
        role="checker",
        explanation=f"it {'accepted' if verdict else 'sent back'} an answer that is {'right' if right else 'wrong'} and "
        f"whose passage {'holds' if backed else 'does not hold'} it",
    )
    value = (right + (right and backed)) / 2
    coterie.reward(
        value, explanation=f"answer {answer['text']!r}, right is {answers[0]!r}; citation {answer['cited']!r}"
    )
    return value


def answer_value(right: bool, backed: bool, given: bool, answer: Answer) -> float:
    """The answerer's reward."""
    if not given:
        return float(plain(answer["text"]) in ("", "not found"))
    return (right + (right and backed)) / 2


def is_right(answer: Answer, answers: Sequence[str]) -> bool:
    """True when the answer is exactly one of those that count, but for case, marks and spaces."""
    return plain(answer["text"]) in {plain(each) for each in answers}


def is_backed(answer: Answer, found: Sequence[Passage], answers: Sequence[str]) -> bool:
    """True when the cited passage was found and holds the answer."""
    return any(passage.id == answer["cited"] and holds(passage, answers) for passage in found)


def holds(passage: Passage, answers: Sequence[str]) -> bool:
    """True when one of the answers stands in a passage, as whole words."""
    text = f" {plain(passage.text)} "
    return any(f" {plain(each)} " in text for each in answers)


def plain(text: str) -> str:
    """Lower case; letters, digits and what joins them, with single spaces."""
    words = re.findall(r"[\w%]+(?:[.,:/_-]\w+)*", text.lower())
    return " ".join(words)
