"""What an optimiser works with: prompts that may be changed, candidates, trials, and the study that plays and reflects.

An optimiser is an ordinary asynchronous function from a ``Study`` to its finalists. It makes ``Candidate``s, asks the
study to ``evaluate`` them and to ``reflect``, and says what it found. It knows no store, no runner and no budget.

A run that was cut off is resumed by running its optimiser again from its start: what was evaluated and reflected then is
there at once. So an optimiser

- draws randomness only from ``study.random``;
- makes no choice that depends on which of several awaited things ends first: it gathers, and looks at the results in order;
- catches ``BudgetSpentError`` and gives what it has found so far.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coterie.episodes import Episode
from coterie.errors import CoterieError
from coterie.vocabulary import Task

Messages = str | Sequence[Mapping[str, str]]
"""What a reflecting model is asked: a text, or chat messages with ``role`` and ``content``."""


class BudgetSpentError(CoterieError):
    """The budget of a run is spent: nothing more is evaluated or reflected on. What was started is finished and counted."""


class ReflectionError(CoterieError):
    """The reflecting model cannot be reached, refuses, or answers nothing that can be used."""


@dataclass(frozen=True, slots=True)
class TunedPrompt:
    """A prompt that may be changed."""

    name: str
    """The resource's, such as ``coder`` or ``coder/tool/search``."""
    role: str
    """Whose prompt it is."""
    part: str = "system"
    """``system``, ``tool/<tool name>`` or ``examples``."""
    placeholders: tuple[str, ...] = ()
    """The ``{{name}}`` that every text must hold, and no other."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text for each tuned prompt."""

    texts: Mapping[str, str]
    """Prompt name → text, for all tuned prompts."""
    parents: tuple[str, ...] = ()
    """The ids of the candidates that it was made from."""
    author: str = "user"
    """Who wrote it: ``user``, or ``optimiser:<name>``."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Prompt name → why it was changed."""

    @property
    def id(self) -> str:
        """Names the texts: two candidates with the same texts are the same, wherever they come from."""
        texts = json.dumps(dict(self.texts), sort_keys=True, ensure_ascii=False)
        return f"ca-{hashlib.sha256(texts.encode()).hexdigest()[:20]}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One rollout of one candidate."""

    candidate: str
    """The candidate's id."""
    task: Task
    sample: int
    """The how-many-eth rollout of this candidate on this task, from 0."""
    rollout_id: str
    score: float
    """The team's reward; the low end of the reward's range if the rollout failed."""
    failure: str | None = None
    """Why the rollout failed; None if it came to its end."""
    role_scores: Mapping[str, float] = field(default_factory=dict)
    """Role → the sum of what is bound to it, by role, agent path or call."""


class Study(Protocol):
    """One search for better prompts. All methods may be called many times at once."""

    @property
    def prompts(self) -> Mapping[str, TunedPrompt]:
        """Name → what may be changed."""
        ...

    @property
    def train(self) -> Sequence[Task]:
        """The tasks to learn from."""
        ...

    @property
    def val(self) -> Sequence[Task]:
        """The tasks on which finalists are chosen. An optimiser may measure on them, and shows them to no reflecting model."""
        ...

    @property
    def seed(self) -> Candidate:
        """What the team runs on now."""
        ...

    @property
    def score_range(self) -> tuple[float, float]:
        """The least and the largest score of a trial."""
        ...

    @property
    def random(self) -> random.Random:
        """The only source of randomness that an optimiser may draw from."""
        ...

    async def evaluate(self, candidate: Candidate, tasks: Sequence[Task], *, samples: int = 1) -> Sequence[Trial]:
        """Play a candidate: ``samples`` rollouts of each task, in the order of the tasks.

        Cached by content (candidate, task, sample): a repetition costs nothing. A task's n-th sample has the same sampling
        seed for all candidates, so that these are compared alike.

        Raises:
            BudgetSpentError: not all of it can be paid for; none of it was started, and what is cached stays.
            PromptError: a text lacks a placeholder, or has an unknown one.
        """
        ...

    async def episodes(self, trials: Sequence[Trial]) -> Sequence[Episode]:
        """What happened in trials, in order: turns, edges and rewards by role. One that failed has what was recorded."""
        ...

    async def reflect(self, messages: Messages, *, purpose: str) -> str:
        """Ask the reflecting model, anew each time; a resumed run gets the answers of then, in the order of then.

        Args:
            messages: What it is asked.
            purpose: What for, in a few words that stay the same from run to run: costs are counted by it.

        Raises:
            BudgetSpentError: it cannot be paid for.
            ReflectionError: the model refused, said nothing, or could not be reached.
        """
        ...

    def note(self, text: str) -> None:
        """Tell the user something worth a line."""
        ...


class Optimiser(Protocol):
    """Searches for better prompts."""

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """The finalists, best guess first; what was found so far when the budget is spent."""
        ...
