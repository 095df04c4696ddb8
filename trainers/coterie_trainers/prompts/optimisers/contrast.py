"""``contrast``: joint configurations of all roles' texts on the same tasks; the differences say which role's text did it.

::

    population = each prompt's texts, at first the seed's
    `rounds` times:
        read      = the best configuration plays `train_batch` train tasks
        prompts   = those with the highest potential                    all in the first round
        texts     = `proposals` new ones for each, by the local optimiser, from what its role did on the lost tasks
        design    = `configurations` joint ones: all new texts together, and those that tell most about each text apart
        credits   = what each text adds to the score on `batch` tasks of val, with its standard error     (contrasts.py)
        best      = the best configuration that was played, the one that the credits promise included
        population = for each prompt the best's text and those with the highest credit
    at last each changed prompt is put back once: what it does not need is left out

Why: the team has one score and its prompts are local. A search that changes one prompt at a time gets stuck where two roles
must change together, and one that changes all at once keeps what is useless or harmful beside what helped. Here both are
played: the joint change shows that there is something to gain, and the contrasts show whose text it is owed to.

**Potential** of a prompt: its role's mean blame for what was lost (``blame.py``), divided by 1 + the rounds in a row in which
none of its new texts had a positive credit. A role that is fine already, and one for which nothing new helps, get no more of
the budget.

**The best** is the configuration with the highest mean on the batch, all on the same tasks; of equals the one with the higher
rewards of the roles themselves, then the shorter one. If a round gains nothing, the next one reads the traces of an equal
configuration that differs most: what one role must learn after another is seen only once the other has changed.

Source: CANTANTE, arXiv 2605.13295, whose local optimiser is CAPO (evolution with racing). Where we depart: credits are main
effects and not an LLM's judgement (``contrasts.py``), and any local optimiser may be set: ``local: reflect`` (a reflecting
model reads the role's own turns, the feedback that is bound to it and what later roles made of its words),
``local: random_edits`` (no model), or in Python any ``Local``. The paper evolves a pool of ready texts for each agent; here a
population begins with one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import ne
from statistics import fmean
from typing import Any, Literal, Protocol

from pydantic import PositiveInt, field_validator

from coterie.episodes import Episode
from coterie.prompts import SYSTEM, placeholders, render, tool_of
from coterie.vocabulary import Task
from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.blame import blame
from coterie_trainers.prompts.contrasts import Configuration, Credit, design, text_credits
from coterie_trainers.prompts.feedback import RoleFeedback, role_feedback
from coterie_trainers.prompts.optimisers.random_edits import edited
from coterie_trainers.prompts.proposing import ANSWER_FORM, propose
from coterie_trainers.prompts.settings import checked, template
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Optimiser, Study, Trial, TunedPrompt
from coterie_trainers.sections import Section

AUTHOR = "optimiser:contrast"
UNPLAYED = Credit(-inf, 0.0, 0)

TEMPLATE = """\
You improve {{part}} of the role {{role}} in a team of agents. It reads:

<current>
{{prompt}}
</current>

This is what the role did with it on some tasks, the worst first:

{{experience}}
{{credits}}
Write a better text for the role {{role}}. Find what the text should have said so that the role had done right, and say it as a \
rule for all tasks like these. Keep what works. Judge the role by what it could know and do: where another role is at fault, do \
not mend it here. Do not put answers to single tasks into the text, and do not make it longer than it must be.
"""


class ContrastSettings(Section):
    """The settings of ``contrast``."""

    rounds: PositiveInt = 8
    """Most rounds. The search ends earlier when the budget is spent, or nothing is lost any more."""
    proposals: PositiveInt = 2
    """New texts a round, for each prompt that gets any."""
    prompts: PositiveInt = 2
    """How many prompts get new texts after the first round: those with the highest potential."""
    configurations: PositiveInt = 6
    """New joint configurations a round."""
    batch: PositiveInt = 6
    """Tasks of val on which configurations are compared; the same ones for all. Twice as many whenever nothing is lost on them."""
    train_batch: PositiveInt = 4
    """Train tasks whose traces are read in a round."""
    samples: PositiveInt = 1
    """Rollouts a task."""
    population: PositiveInt = 3
    """Texts that a prompt keeps from round to round."""
    local: Literal["reflect", "random_edits"] = "reflect"
    """Who writes new texts."""
    finalists: PositiveInt = 3
    """How many candidates it gives, at most."""
    max_chars: PositiveInt = 6_000
    """About how many characters of experience a question shows."""
    template: str = TEMPLATE
    """For ``reflect``, a text or a file: ``{{prompt}}``, ``{{experience}}``; may have ``{{role}}``, ``{{part}}``, ``{{credits}}``
    (other texts of this prompt that were tried, and what each was worth)."""

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return template(value, needs=("prompt", "experience"), offers=("role", "part", "credits"))


@dataclass(frozen=True, slots=True)
class Order:
    """What a local optimiser is asked for."""

    prompt: TunedPrompt
    text: str
    """What the prompt says now."""
    experience: Sequence[RoleFeedback]
    """What its role did on some tasks, the worst first."""
    tried: Mapping[str, Credit]
    """Other texts that were tried for it, and what each adds in place of ``text``."""


class Local(Protocol):
    """A local optimiser: a new text for one prompt, from what one role did. It draws randomness from ``study.random`` alone,
    before it first awaits anything.
    """

    async def __call__(self, study: Study, order: Order) -> tuple[str, str] | None:
        """The text, and why; None if there is nothing to propose."""
        ...


def make(**settings: Any) -> Optimiser:
    """Contrastive credit per role; the settings are those of ``ContrastSettings``.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """
    chosen = checked(ContrastSettings, "contrast", settings)
    return Contrast(chosen, Reflect(chosen) if chosen.local == "reflect" else random_edit)


class Contrast:
    """The optimiser."""

    def __init__(self, settings: ContrastSettings, local: Local) -> None:
        self.settings = settings
        self.local = local
        self.asks_model = isinstance(local, Reflect)

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """The best configurations, best first, without the seed."""
        found = _Findings(list(study.prompts), study.seed)
        order = study.random.sample(list(study.val), len(study.val))
        tasks = order[: self.settings.batch]
        try:
            await self._play(study, found, tasks, [found.best])
            for number in range(1, self.settings.rounds + 1):
                while found.mean(found.best) >= study.score_range[1] and len(tasks) < len(order):
                    tasks = order[: 2 * len(tasks)]
                    found.start_over()
                    await self._play(study, found, tasks, [found.seed, found.best])
                if not await self._round(study, found, tasks, number):
                    break
            await self._put_back(study, found, tasks)
        except BudgetSpentError as error:
            study.note(f"contrast: the budget is spent: {error}")
        return found.finalists(self.settings.finalists)

    async def _round(self, study: Study, found: _Findings, tasks: Sequence[Task], number: int) -> bool:
        """One round; whether there is anything left to learn."""
        lost = await self._lost(study, found)
        if not lost:
            study.note(
                f"contrast: nothing is lost on the train tasks that were read in round {number}; the search ends"
            )
            return False
        chosen = self._chosen(study, found, lost, number)
        new = await self._propose(study, found, chosen, lost)
        if not any(new.values()):
            study.note(f"contrast: no new text was proposed in round {number}")
            return True
        before = found.best
        together = [
            tuple((new.get(name, [])[at:] or [found.reading[place]])[0] for place, name in enumerate(found.names))
            for at in range(max(map(len, new.values())))
        ]
        levels = [[*found.population[name], *new.get(name, [])] for name in found.names]
        rows = design(levels, list(found.scores), self.settings.configurations, first=together, random=study.random)
        await self._play(study, found, tasks, rows)
        worth = found.credits()
        promised = tuple(
            max(texts, key=lambda text: round(worth[place].get(text, UNPLAYED).value, 9))
            for place, texts in enumerate(levels)
        )
        await self._play(study, found, tasks, [promised])
        found.end_round(new, levels, before, self.settings.population)
        _tell(study, found, new, number)
        return True

    async def _lost(self, study: Study, found: _Findings) -> list[tuple[Trial, Episode]]:
        """What the configuration that is read did on train tasks where it lost something, the worst first. If it lost nothing
        there, all of train is looked at.
        """
        candidate = found.candidate(found.reading)
        some = study.random.sample(list(study.train), min(self.settings.train_batch, len(study.train)))
        for tasks in (some, study.train):
            trials = [trial for trial in await study.evaluate(candidate, tasks) if trial.score < study.score_range[1]]
            if trials:
                trials = sorted(trials, key=lambda trial: trial.score)[: self.settings.train_batch]
                return list(zip(trials, await study.episodes(trials), strict=True))
        return []

    def _chosen(
        self, study: Study, found: _Findings, lost: Sequence[tuple[Trial, Episode]], number: int
    ) -> list[TunedPrompt]:
        """The prompts with the highest potential, in the order of the study."""
        prompts = list(study.prompts.values())
        if number == 1:
            return prompts
        roles = [prompt.role for prompt in prompts]
        shares = [blame(trial, episode, roles, study.score_range) for trial, episode in lost]
        potential = {
            prompt.name: fmean(share[prompt.role] for share in shares) / (1 + found.fruitless[prompt.name])
            for prompt in prompts
        }
        best = sorted(prompts, key=lambda prompt: -potential[prompt.name])[: self.settings.prompts]
        return [prompt for prompt in prompts if prompt in best]

    async def _propose(
        self,
        study: Study,
        found: _Findings,
        chosen: Sequence[TunedPrompt],
        lost: Sequence[tuple[Trial, Episode]],
    ) -> dict[str, list[str]]:
        """New texts for prompts. The proposals for one prompt are learnt from different tasks where there are several."""
        count = self.settings.proposals
        worth = found.credits()
        orders = []
        for prompt in chosen:
            place = found.names.index(prompt.name)
            text = found.reading[place]
            tried = {other: credit for other, credit in worth[place].items() if other != text}
            for at in range(count):
                part = lost[at::count] if len(lost) >= count else lost
                limit = max(400, self.settings.max_chars // len(part))
                seen = [role_feedback(trial, episode, prompt.role, limit=limit) for trial, episode in part]
                orders.append(Order(prompt, text, seen, tried))
        written = await at_once(self.local(study, order) for order in orders)
        new: dict[str, list[str]] = {}
        for order, proposal in zip(orders, written.results, strict=True):
            if proposal is None:
                continue
            text, why = proposal
            name = order.prompt.name
            if text not in found.population[name] and text not in new.get(name, []):
                new.setdefault(name, []).append(text)
                found.why.setdefault((name, text), why)
        if written.spent and not new:
            raise written.spent
        return new

    async def _play(self, study: Study, found: _Findings, tasks: Sequence[Task], rows: Sequence[Configuration]) -> None:
        """Play configurations on the tasks of comparison; what is paid for counts, also where the budget ends in between."""
        rows = [row for row in rows if row not in found.scores]
        played = await at_once(
            study.evaluate(found.candidate(row), tasks, samples=self.settings.samples) for row in rows
        )
        for row, trials in zip(rows, played.results, strict=True):
            if trials is not None:
                found.add(row, tasks, trials)
        if played.spent:
            raise played.spent

    async def _put_back(self, study: Study, found: _Findings, tasks: Sequence[Task]) -> None:
        """Put each changed prompt of the best back to the seed's text; where nothing is lost by it, it stays so."""
        for place in range(len(found.names)):
            row = tuple(found.seed[at] if at == place else text for at, text in enumerate(found.best))
            await self._play(study, found, tasks, [row])
            if found.mean(row) >= found.mean(found.best):
                found.best = row


class Reflect:
    """The local optimiser ``reflect``: a reflecting model reads what the role did."""

    def __init__(self, settings: ContrastSettings) -> None:
        self.settings = settings

    async def __call__(self, study: Study, order: Order) -> tuple[str, str] | None:
        """The model's text; why is what was judged on the worst of the tasks that it read."""
        tool = tool_of(order.prompt.part)
        part = "the system prompt" if order.prompt.part == SYSTEM else "the worked examples"
        values = {
            "role": order.prompt.role,
            "part": part if tool is None else f"the description of the tool {tool!r}",
            "prompt": order.text,
            "experience": "\n\n".join(f"# A task, score {each.score:g}\n{each}" for each in order.experience),
            "credits": _told(order.tried),
        }
        asked = render(self.settings.template, {name: values[name] for name in placeholders(self.settings.template)})
        kept = ", ".join(f"{{{{{name}}}}}" for name in order.prompt.placeholders)
        rule = f"These placeholders must stand in it exactly so: {kept}. There are no others.\n" if kept else ""
        text = await propose(
            study, f"{asked.rstrip()}\n\n{rule}{ANSWER_FORM}", order.prompt, purpose="contrast proposal"
        )
        worst = order.experience[0]
        return None if text is None else (text, f"learnt from task {worst.task_id}: {worst.judged}")


async def random_edit(study: Study, order: Order) -> tuple[str, str] | None:
    """The local optimiser ``random_edits``: one edit at random, without a model."""
    text, done = edited(order.text, study.random)
    return text, f"at random: {done}"


@dataclass(slots=True)
class _Findings:
    """What was played, and what is best."""

    names: Sequence[str]
    seed_candidate: Candidate
    scores: dict[Configuration, list[float]] = field(default_factory=dict)
    """On each task of comparison."""
    own: dict[Configuration, float] = field(default_factory=dict)
    """The mean of the roles' own rewards."""
    why: dict[tuple[str, str], str] = field(default_factory=dict)
    population: dict[str, list[str]] = field(default_factory=dict)
    fruitless: dict[str, int] = field(default_factory=dict)
    best: Configuration = ()
    reading: Configuration = ()
    """Whose traces the next round reads, and what its new texts are made from."""

    def __post_init__(self) -> None:
        self.best = self.reading = self.seed
        self.population = {name: [self.seed_candidate.texts[name]] for name in self.names}
        self.fruitless = dict.fromkeys(self.names, 0)

    @property
    def seed(self) -> Configuration:
        return tuple(self.seed_candidate.texts[name] for name in self.names)

    def add(self, row: Configuration, tasks: Sequence[Task], trials: Sequence[Trial]) -> None:
        by_task: dict[str, list[float]] = {}
        for trial in trials:
            by_task.setdefault(trial.task.id, []).append(trial.score)
        self.scores[row] = [fmean(by_task[task.id]) for task in tasks]
        self.own[row] = fmean(sum(trial.role_scores.values()) for trial in trials)
        self.best = max(self.best, row, key=self._standing) if self.best in self.scores else row

    def start_over(self) -> None:
        """Forget the scores: others are to come, on more tasks."""
        best = self.best
        self.scores.clear()
        self.own.clear()
        self.population = {name: [text] for name, text in zip(self.names, best, strict=True)}
        self.reading = best

    def mean(self, row: Configuration) -> float:
        return fmean(self.scores[row])

    def credits(self) -> list[dict[str, Credit]]:
        return text_credits(self.scores, self.best)

    def end_round(
        self, new: Mapping[str, Sequence[str]], levels: Sequence[Sequence[str]], before: Configuration, size: int
    ) -> None:
        """Take over what the round showed: who remains in the population, and whose traces are read next."""
        worth = self.credits()
        from_before = text_credits(self.scores, before)
        for place, name in enumerate(self.names):
            gained = [from_before[place][text].value > 0 for text in new.get(name, []) if text in from_before[place]]
            if gained:
                self.fruitless[name] = 0 if any(gained) else self.fruitless[name] + 1
            # Of equals the newest: it may be what another prompt is still to be changed for.
            texts = [text for text in levels[place][::-1] if text in worth[place] and text != self.best[place]]
            texts = sorted(texts, key=lambda text: -round(worth[place][text].value, 9))
            self.population[name] = [self.best[place], *texts][: max(size, 1)]
        self.reading = self._furthest_equal() if self.best == before else self.best

    def _furthest_equal(self) -> Configuration:
        """Of those that score like the best the one that differs in most prompts, the newest of these."""
        equals = [row for row in self.scores if self.mean(row) >= self.mean(self.best)]
        return max(equals[::-1], key=lambda row: sum(map(ne, row, self.best)))

    def candidate(self, row: Configuration) -> Candidate:
        texts = dict(zip(self.names, row, strict=True))
        if row == self.seed:
            return self.seed_candidate
        why = {name: self.why[name, text] for name, text in texts.items() if (name, text) in self.why}
        return Candidate(texts, parents=(self.seed_candidate.id,), author=AUTHOR, why=why)

    def finalists(self, count: int) -> list[Candidate]:
        """The best, and what follows it, as far as it did better than the seed."""
        rows = sorted(self.scores, key=self._standing, reverse=True)
        better = [row for row in rows if row != self.best and self._standing(row)[:2] > self._standing(self.seed)[:2]]
        first = [] if self.best == self.seed else [self.best]
        return [self.candidate(row) for row in [*first, *better][:count]]

    def _standing(self, row: Configuration) -> tuple[float, float, int]:
        return self.mean(row), self.own[row], -sum(map(len, row))


def _told(tried: Mapping[str, Credit]) -> str:
    """Other texts and their worth, for the reflecting model: the best and the worst."""
    if not tried:
        return ""
    order = sorted(tried, key=lambda text: -tried[text].value)
    some = order if len(order) <= 2 else [order[0], order[-1]]
    lines = [f"It changed the team's score by {tried[text].value:+.2f} to say instead:\n{text}\n" for text in some]
    return "\nThis was tried on the whole team:\n\n" + "\n".join(lines)


def _tell(study: Study, found: _Findings, new: Mapping[str, Sequence[str]], number: int) -> None:
    """A line a round: what the new texts are worth."""
    worth = text_credits(found.scores, found.seed)
    # 0.0 is added so that a rounded nothing has no minus.
    told = [
        f"{name} {round(of_name[text].value, 2) + 0.0:+.2f}±{of_name[text].error:.2f}"
        for name, of_name in zip(found.names, worth, strict=True)
        for text in new.get(name, [])
        if text in of_name
    ]
    study.note(
        f"contrast: round {number}: credit of the new texts: {', '.join(told)}; best {found.mean(found.best):.3f}"
    )
