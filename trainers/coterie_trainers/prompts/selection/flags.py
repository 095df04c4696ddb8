"""Flags: a prompt that holds answers to single tasks, or that grows without end, is pointed at, with what and where.

A search that is paid for a score writes down whatever raises it. A text that repeats a task's input or answer may score well on
that task and says nothing about others; one that grows with each round costs tokens in every call. Neither is certain to be
wrong (an example may be meant), so a flag loses ties and is told to the user; ``selection.flagged: refuse`` keeps such
candidates out.

**Leak.** What a text shares with a task, unless the seed's prompts held it already or more than ``COMMON`` of the tasks have it
too (a format, a label, a unit):

- ``WORDS`` words in a row, of input or reference: the usual way to find test data in training data (GPT-3, arXiv 2005.14165,
  counts 13 words; prompts are short, so 8 here, as in PaLM, arXiv 2204.02311);
- a number of at least 3 digits of a reference, or 5 of an input;
- a whole reference of 3 words or more; or two or more shorter ones, since one may be chance.

A prompt of the part ``examples`` may hold train tasks: that is what it is for. For all others, and for the tasks of ``val`` and
``test`` in any prompt, the above holds.

**Growth.** Longer than ``growth`` times the seed's text and ``SLACK`` more, or than ``longest`` characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from coterie.prompts import EXAMPLES
from coterie.vocabulary import JSON, Task
from coterie_trainers.prompts.study import Candidate, TunedPrompt

WORDS = 8
"""Words in a row that are no accident."""
COMMON = 0.1
"""What more than this part of the tasks have is no answer to one of them."""
SLACK = 2_000
"""Characters that any prompt may grow by."""
SHOWN = 80
"""Characters of what was found that are told."""


class FlagKind(StrEnum):
    """What is suspicious about a text."""

    LEAK = "leak"
    """It holds a part of a task's input or reference."""
    GROWTH = "growth"
    """It is much longer than what the run began with."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One suspicious thing about one prompt of a candidate."""

    kind: FlagKind
    prompt: str
    """Its name."""
    what: str
    """What was found: the shared words, or the lengths."""
    where: str
    """The task that it is from, with its split; empty for growth."""

    def __str__(self) -> str:
        """For people."""
        of = f", which stands in {self.where}" if self.where else ""
        return f"{self.kind.value} in {self.prompt!r}: {self.what}{of}"


def flags_of(
    candidate: Candidate,
    seed: Candidate,
    prompts: Mapping[str, TunedPrompt],
    tasks: Sequence[Task],
    *,
    growth: float = 4.0,
    longest: int = 20_000,
) -> list[Flag]:
    """What is suspicious about a candidate's texts, for each prompt the first leak of each kind from each split, and growth.

    Args:
        candidate: Is looked at where its texts are not the seed's.
        seed: What the run began with; what stands in it is nobody's leak.
        prompts: Name → what the prompt is.
        tasks: Those of all splits.
        growth: So many times the seed's length a text may have, and ``SLACK`` characters more.
        longest: No text may be longer, in characters.
    """
    known = "\n".join(seed.texts.values())
    found: list[Flag] = []
    leaks = _Leaks(known, tasks)
    for name, text in candidate.texts.items():
        before = seed.texts.get(name, "")
        if text == before:
            continue
        may_hold = {"train"} if prompts[name].part == EXAMPLES else set()
        found += leaks.of(name, text, may_hold)
        # Examples have no length of their own at first: only the limit is for them.
        limit = longest if prompts[name].part == EXAMPLES else min(longest, int(growth * len(before)) + SLACK)
        if len(text) > limit:
            grown = f"{len(text)} characters, where it had {len(before)} at first and {limit} are allowed"
            found.append(Flag(FlagKind.GROWTH, name, grown, ""))
    return found


class _Leaks:
    """What tasks hold, once for all candidates of a run."""

    def __init__(self, known: str, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.most = max(1, int(COMMON * len(tasks)))
        self.pieces = [_Pieces.of(task) for task in tasks]
        self.known = _padded(known)

    def of(self, name: str, text: str, may_hold: set[str]) -> Iterator[Flag]:
        """The first of each kind from each split."""
        told: set[tuple[str, str]] = set()
        words = _words(text)
        runs = {run for run in _runs(words) if f" {' '.join(run)} " not in self.known}
        padded = _padded(text)
        short: dict[str, list[tuple[str, Task]]] = {}
        for kind, piece, task in self._shared(runs, padded):
            if task.split in may_hold:
                continue
            if kind == "short":
                short.setdefault(task.split, []).append((piece, task))
            elif (kind, task.split) not in told:
                told.add((kind, task.split))
                yield Flag(FlagKind.LEAK, name, _shown(kind, piece), _where(task))
        for found in short.values():
            pieces = list(dict.fromkeys(piece for piece, _ in found))
            if len(pieces) > 1:
                what = f"{len(pieces)} references, such as {', '.join(map(repr, pieces[:3]))}"
                yield Flag(FlagKind.LEAK, name, what, _where(found[0][1]))

    def _shared(self, runs: set[tuple[str, ...]], padded: str) -> Iterator[tuple[str, str, Task]]:
        """What a text and few of the tasks have: the kind of thing, the thing, the task."""
        found: dict[tuple[str, str], list[Task]] = {}
        for task, pieces in zip(self.tasks, self.pieces, strict=True):
            shared = [("words", " ".join(run)) for run in sorted(runs & pieces.runs)[:1]]
            shared += [("number", number) for number in pieces.numbers if f" {number} " in padded]
            shared += [
                ("reference" if words >= 3 else "short", whole)
                for whole, words in pieces.references.items()
                if f" {whole} " in padded
            ]
            for kind, piece in shared:
                if f" {piece} " not in self.known:
                    found.setdefault((kind, piece), []).append(task)
        for (kind, piece), tasks in found.items():
            if len({task.id for task in tasks}) <= self.most:
                yield from ((kind, piece, task) for task in tasks)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What of a task must not stand in a prompt."""

    runs: frozenset[tuple[str, ...]]
    numbers: tuple[str, ...]
    references: Mapping[str, int]
    """Whole references → how many words they have."""

    @classmethod
    def of(cls, task: Task) -> _Pieces:
        inputs, references = list(_leaves(task.input)), list(_leaves(task.reference))
        numbers = [each for text in references for each in _numbers(text, 3)]
        numbers += [each for text in inputs for each in _numbers(text, 5)]
        wholes = {
            " ".join(words): len(words)
            for words in map(_words, references)
            if words and sum(map(len, words)) >= 4 and not all(word.isdigit() for word in words)
        }
        runs = frozenset(run for text in [*inputs, *references] for run in _runs(_words(text)))
        return cls(runs, tuple(dict.fromkeys(numbers)), wholes)


def _leaves(value: JSON) -> Iterator[str]:
    """All texts and numbers in a JSON value."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def _words(text: str) -> list[str]:
    """Words and numbers in lower case: 1,234 and 1234 are the same, 12.50 stays one."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.lower())
    return re.findall(r"\d+(?:\.\d+)?|\w+", plain)


def _padded(text: str) -> str:
    return f" {' '.join(_words(text))} "


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(len(words) - WORDS + 1):
        yield tuple(words[start : start + WORDS])


def _numbers(text: str, digits: int) -> list[str]:
    return [word for word in _words(text) if word[0].isdigit() and sum(map(str.isdigit, word)) >= digits]


def _shown(kind: str, piece: str) -> str:
    cut = piece if len(piece) <= SHOWN else f"{piece[:SHOWN]}…"
    return f"the {kind} {cut!r}"


def _where(task: Task) -> str:
    return f"task {task.id!r} of {task.split}"
