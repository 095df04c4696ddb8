"""``bootstrap``: few-shot examples, picked for each role from its own successful episodes.

::

    train tasks → two parts: the pool, from which examples come, and the tasks that sets of them are compared on
    play the seed on the pool, `samples` times a task
    an example of a role = what it got and what it said last, in an episode that is good for it
    `sets` sets of up to `examples` a role; play each on the comparison tasks;  finalists = the best `finalists`

An episode is good for a role if the team won, which is a score of at least ``won``, and what the role got of its own is at
least its mean over the pool: a role that was carried by the others gives no example. Within a set each example has another
input, chosen so that the least distance to those that are there is largest (distance: 1 − the share of common words). An
example is whole or absent: one that does not fit into what is left of ``max_chars`` is passed over.

Nothing comes from validation or test tasks, and no set is compared on a task that one of its examples was taken from: the
answer would stand in the prompt.

Source: DSPy's BootstrapFewShotWithRandomSearch, arXiv 2310.03714.

Where we depart: there an example passes when the whole program's output does; here it must be good for its own role too. Sets
are random there; here they are spread over the inputs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pydantic import PositiveInt

from coterie.assembly import message_text
from coterie.episodes import Episode, Turn
from coterie.errors import ConfigError
from coterie.prompts import EXAMPLES, escape
from coterie.vocabulary import Task
from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.settings import checked
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Optimiser, Study, Trial, TunedPrompt
from coterie_trainers.sections import Section

AUTHOR = "optimiser:bootstrap"
_HEAD = "Worked examples of such work, each as it was done well:"


class BootstrapSettings(Section):
    """The settings of ``bootstrap``."""

    examples: PositiveInt = 4
    """Most examples of a role in a set."""
    sets: PositiveInt = 8
    """Sets that are compared."""
    finalists: PositiveInt = 3
    pool: PositiveInt = 32
    """Most train tasks that examples are taken from."""
    comparison: PositiveInt = 16
    """Most train tasks that the sets are compared on; never more than half."""
    samples: PositiveInt = 1
    """Rollouts of each task of the pool."""
    won: float = 1.0
    """The team's score from which an episode counts as won."""
    max_chars: PositiveInt = 6000
    """Most characters of a role's examples together."""


def make(**settings: Any) -> Optimiser:
    """Few-shot examples from successful episodes; the settings are those of ``BootstrapSettings``.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """
    return Bootstrap(checked(BootstrapSettings, "bootstrap", settings))


class Bootstrap:
    """The optimiser."""

    def __init__(self, settings: BootstrapSettings) -> None:
        self.settings = settings

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """The sets that did best, best first.

        Raises:
            ConfigError: no tuned prompt is for examples, or there is only one train task.
        """
        prompts = _for_examples(study)
        pool, comparison = self._parts(study)
        try:
            trials = await study.evaluate(study.seed, pool, samples=self.settings.samples)
            episodes = await study.episodes(trials)
        except BudgetSpentError as spent:
            study.note(f"bootstrap: the budget is spent before there was any example: {spent}")
            return []
        found = {prompt.name: self._examples(study, prompt, trials, episodes) for prompt in prompts}
        candidates = self._candidates(study, {name: some for name, some in found.items() if some})
        played = await at_once(study.evaluate(candidate, comparison) for candidate in candidates)
        if played.spent:
            study.note(f"bootstrap: the budget is spent before all sets of examples were compared: {played.spent}")
        scored = [
            (fmean(trial.score for trial in of_set), candidate)
            for of_set, candidate in zip(played.results, candidates, strict=True)
            if of_set
        ]
        # Of equals the shorter: every later call pays for its examples.
        scored.sort(key=lambda each: (-each[0], sum(map(len, each[1].texts.values()))))
        return [candidate for _, candidate in scored[: self.settings.finalists]]

    def _parts(self, study: Study) -> tuple[list[Task], list[Task]]:
        tasks = study.random.sample(list(study.train), len(study.train))
        if len(tasks) < 2:
            raise ConfigError(
                "optimiser 'bootstrap': there is only one train task. It needs two at least: one to take an example from, "
                "and another to try it on."
            )
        size = min(self.settings.comparison, len(tasks) // 2)
        return tasks[size:][: self.settings.pool], tasks[:size]

    def _examples(
        self, study: Study, prompt: TunedPrompt, trials: Sequence[Trial], episodes: Sequence[Episode]
    ) -> list[_Example]:
        """What a role can be shown: the best of each input, in order of the tasks."""
        own = [trial.role_scores[prompt.role] for trial in trials if prompt.role in trial.role_scores]
        least = fmean(own) if own else 0.0
        best: dict[str, tuple[float, _Example]] = {}
        for trial, episode in zip(trials, episodes, strict=True):
            score = trial.role_scores.get(prompt.role, least)
            if trial.failure is not None or trial.score < self.settings.won or score < least:
                continue
            example = _example(episode, prompt.role)
            if example is not None and (example.key not in best or score > best[example.key][0]):
                best[example.key] = (score, example)
        if not best:
            won = sum(trial.score >= self.settings.won for trial in trials)
            study.note(
                f"bootstrap: no example for {prompt.name!r}. Of {len(trials)} rollouts {won} reached the score "
                f"{self.settings.won:g} (setting 'won'), and in none of them {prompt.role!r} answered in words with rewards "
                "of its own that are at least its mean."
            )
        return [example for _, example in best.values()]

    def _candidates(self, study: Study, found: Mapping[str, Sequence[_Example]]) -> list[Candidate]:
        """Sets of examples of all roles that have some: the first as large as allowed, the others of any size."""
        distinct: dict[str, Candidate] = {}
        for number in range(self.settings.sets if found else 0):
            texts, why = dict(study.seed.texts), {}
            for name, examples in found.items():
                most = self.settings.examples if number == 0 else study.random.randint(1, self.settings.examples)
                chosen = _spread(examples, most, self.settings.max_chars, study.random)
                if chosen:
                    texts[name] = escape("\n\n".join([_HEAD, *(each.text for each in chosen)]))
                    why[name] = (
                        f"{len(chosen)} examples, from episodes that won: {', '.join(each.origin for each in chosen)}"
                    )
            candidate = Candidate(texts, parents=(study.seed.id,), author=AUTHOR, why=why)
            if why:
                distinct.setdefault(candidate.id, candidate)
        return list(distinct.values())


@dataclass(frozen=True, slots=True)
class _Example:
    """A role's work in one episode."""

    got: str
    said: str
    origin: str
    """The task and rollout it comes from."""

    @property
    def text(self) -> str:
        return f"Input:\n{self.got}\nOutput:\n{self.said}"

    @property
    def key(self) -> str:
        """Inputs that differ in nothing but space are the same."""
        return " ".join(self.got.split())

    @property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"\w+", self.got.lower()))


def _for_examples(study: Study) -> list[TunedPrompt]:
    """The prompts that examples are written into."""
    prompts = [prompt for prompt in study.prompts.values() if prompt.part == EXAMPLES]
    if not prompts:
        names = ", ".join(study.prompts)
        raise ConfigError(
            f"optimiser 'bootstrap': no tuned prompt has the part 'examples'; there are: {names}. Add one for each role that "
            "is to get examples, such as 'coder/examples: {}' under 'prompts'."
        )
    for prompt in prompts:
        if prompt.placeholders:
            raise ConfigError(
                f"optimiser 'bootstrap': the prompt {prompt.name!r} has placeholders ({', '.join(prompt.placeholders)}), and "
                "examples have none. Leave them out of it."
            )
    return prompts


def _example(episode: Episode, role: str) -> _Example | None:
    """The last thing that a role said in words, without calling a tool, and what it had got; None if there is none."""
    for turn in reversed(episode.turns):
        spoken = turn.error is None and turn.answered_by is None and turn.text.strip()
        if turn.role == role and spoken and not any(message.get("tool_calls") for message in turn.output):
            got = _conversation(turn)
            return (
                _Example(got, turn.text.strip(), f"task {episode.task_id}, rollout {episode.rollout_id}")
                if got
                else None
            )
    return None


def _conversation(turn: Turn) -> str:
    """What was said to a role besides its system text: one message as it is, several with who said each."""
    messages = [message for message in turn.messages if message.get("role") not in ("system", "developer")]
    if len(messages) == 1:
        return message_text(messages[0]).strip()
    return "\n".join(f"{message.get('role')}: {message_text(message)}" for message in messages).strip()


def _spread(examples: Sequence[_Example], most: int, max_chars: int, chance: random.Random) -> list[_Example]:
    """Up to ``most`` examples that fit, begun with any and each next as far from those before as there is."""
    left = chance.sample(list(examples), len(examples))
    room = max_chars - len(_HEAD)
    chosen: list[_Example] = []
    while left and len(chosen) < most:
        nearest = [min((_distance(each, other) for other in chosen), default=0.0) for each in left]
        # Of equals the first in the random order.
        each = left.pop(nearest.index(max(nearest)))
        if len(escape(each.text)) + 2 <= room:
            room -= len(escape(each.text)) + 2
            chosen.append(each)
    return chosen


def _distance(one: _Example, other: _Example) -> float:
    together = one.words | other.words
    return 1.0 - len(one.words & other.words) / len(together) if together else 0.0
