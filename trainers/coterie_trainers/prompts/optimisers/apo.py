"""``apo``: textual gradients and beam search, over the prompts of several roles at once.

A round, with B the beam::

    for each of `beam` parents (B, over and over), `branch` times:
        play the parent on `gradient_batch` train tasks
        gradient = what the reflecting model finds wrong with the text, from what the role did there
        edit     = the text mended accordingly
        and `paraphrases` other wordings of the edit
    play B and all new candidates on `validation_batch` tasks;  B = the `beam` best

Why: an edit that follows from a stated fault moves with a direction, where a random rewrite does not; the beam keeps several
directions alive, so that a bad batch costs one branch and not the search.

A candidate holds the texts of all prompts. Which of them a branch edits is the setting ``edits``: ``turn`` one after the other,
so that each gets equally many branches; ``worst`` the one whose role had the lowest rewards of its own in the batch; ``all``
all of them, each with a gradient of its own.

Source: ProTeGi, arXiv 2305.03495. Defaults as in Agent Lightning's APO: beam 4, branch 4, 3 rounds, batches of 4 and 16, no
paraphrases (the paper has 2).

Where we depart: the paper samples errors of a classifier; here the whole batch is shown, the worst first, as the role saw it
and with what came of its words. The paper chooses the beam with bandits on train; here, as in Agent Lightning, all candidates
of a round play the same validation tasks, where an equal score keeps the older one. The choice among finalists is the study's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from coterie.episodes import Episode
from coterie.vocabulary import Task
from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.feedback import role_feedback
from coterie_trainers.prompts.proposing import filled, propose, question
from coterie_trainers.prompts.settings import checked, template
from coterie_trainers.prompts.study import (
    BudgetSpentError,
    Candidate,
    Optimiser,
    ReflectionError,
    Study,
    Trial,
    TunedPrompt,
)
from coterie_trainers.sections import Section

AUTHOR = "optimiser:apo"

GRADIENT = """\
You improve {{part}} of the role {{role}} in a team of agents. It reads:

<current>
{{prompt}}
</current>

This is what the role did with it on some tasks, the worst first, how it was judged, and what came of it later:

{{experience}}

Say what in the text is wrong or missing, so that the role did as it did. Judge the role by what it could know and do; where \
the fault is another role's, say so. Be concrete: name the rule that would have helped on tasks like these, not the answers \
to these tasks. This is analysis {{variant}}: if several causes are possible, choose another than the first that comes to \
mind. At most five sentences.
"""

EDIT = """\
This is {{part}} of the role {{role}} in a team of agents:

<current>
{{prompt}}
</current>

This is what the role did with it on some tasks:

{{experience}}

It was criticised:

<critique>
{{critique}}
</critique>

Write it anew so that the critique no longer holds. Change what it takes and keep what works. Do not put answers to single \
tasks into it, and do not make it longer than the change needs.
"""

PARAPHRASE = """\
Say the same in other words; the meaning, every rule and every format must stay as they are. This is wording {{variant}}.

<current>
{{prompt}}
</current>
"""


class ApoSettings(Section):
    """The settings of ``apo``."""

    beam: PositiveInt = 4
    """Candidates that a round begins with."""
    branch: PositiveInt = 4
    """New candidates of each."""
    rounds: PositiveInt = 3
    gradient_batch: PositiveInt = 4
    """Train tasks that a branch sees."""
    validation_batch: PositiveInt = 16
    """Tasks of ``val`` that the candidates of a round are compared on."""
    edits: Literal["turn", "worst", "all"] = "turn"
    """Which prompts a branch edits."""
    paraphrases: Annotated[int, Field(ge=0)] = 0
    """Other wordings of each edit, which are candidates too."""
    gradient_template: str = GRADIENT
    """A text or a file: ``{{prompt}}``, ``{{experience}}``; may have ``{{role}}``, ``{{part}}``, ``{{variant}}``."""
    edit_template: str = EDIT
    """A text or a file: ``{{prompt}}``, ``{{critique}}``; may have ``{{role}}``, ``{{part}}``, ``{{experience}}``."""
    paraphrase_template: str = PARAPHRASE
    """A text or a file: ``{{prompt}}``; may have ``{{role}}``, ``{{part}}``, ``{{variant}}``."""

    @field_validator("gradient_template")
    @classmethod
    def _gradient(cls, value: str) -> str:
        return template(value, needs=("prompt", "experience"), offers=("role", "part", "variant"))

    @field_validator("edit_template")
    @classmethod
    def _edit(cls, value: str) -> str:
        return template(value, needs=("prompt", "critique"), offers=("role", "part", "experience"))

    @field_validator("paraphrase_template")
    @classmethod
    def _paraphrase(cls, value: str) -> str:
        return template(value, needs=("prompt",), offers=("role", "part", "variant"))


def make(**settings: Any) -> Optimiser:
    """Textual gradients and beam search; the settings are those of ``ApoSettings``.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """
    return Apo(checked(ApoSettings, "apo", settings))


class Apo:
    """The optimiser."""

    asks_model = True

    def __init__(self, settings: ApoSettings) -> None:
        self.settings = settings

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """The last beam, best first, without the seed."""
        beam = [study.seed]
        number = 0
        for round_ in range(1, self.settings.rounds + 1):
            branches = self._branches(study, beam, number)
            number += len(branches)
            children, spent = await self._grow(study, branches)
            if not spent:
                beam, spent = await self._select(study, _distinct([*beam, *children]), beam)
            if spent:
                study.note(f"apo: the budget is spent in round {round_} of {self.settings.rounds}: {spent}")
                break
        return [candidate for candidate in beam if candidate.id != study.seed.id]

    def _branches(self, study: Study, beam: Sequence[Candidate], number: int) -> list[_Branch]:
        """What a round will try; all that is random about it is drawn here."""
        size = min(self.settings.gradient_batch, len(study.train))
        parents = [beam[place % len(beam)] for place in range(self.settings.beam)]
        return [
            _Branch(number + place, parent, study.random.sample(list(study.train), size))
            for place, parent in enumerate(parent for parent in parents for _ in range(self.settings.branch))
        ]

    async def _grow(self, study: Study, branches: Sequence[_Branch]) -> tuple[list[Candidate], BudgetSpentError | None]:
        """The new candidates of a round. Its steps are taken by all branches together, so that the reflecting model is asked
        in the same order whatever ends first.
        """
        played = await at_once(self._play(study, branch) for branch in branches)
        if played.spent:
            return [], played.spent
        faults = [fault for found in played.results for fault in found or ()]
        criticised = await at_once(self._criticise(study, fault) for fault in faults)
        stated = [fault for fault in criticised.results if fault is not None and fault.critique]
        mended = await at_once(self._mend(study, fault) for fault in stated)
        children = _children([fault for fault in mended.results if fault is not None and fault.text])
        variants = range(1, self.settings.paraphrases + 1)
        reworded = await at_once(self._reword(study, child, variant) for child in children for variant in variants)
        found = [child.candidate for child in children] + [each for each in reworded.results if each is not None]
        return found, criticised.spent or mended.spent or reworded.spent

    async def _play(self, study: Study, branch: _Branch) -> list[_Fault]:
        """Play a branch's parent on its batch, and say what is to be edited and what the roles did."""
        trials = await study.evaluate(branch.parent, branch.tasks)
        episodes = await study.episodes(trials)
        prompts = list(study.prompts.values())
        if self.settings.edits == "turn":
            prompts = [prompts[branch.number % len(prompts)]]
        elif self.settings.edits == "worst":
            means = {prompt.name: _mean_of_role(trials, prompt.role) for prompt in prompts}
            prompts = [min(prompts, key=lambda prompt: means[prompt.name])]
        order = sorted(range(len(trials)), key=lambda place: trials[place].score)
        return [
            _Fault(branch, prompt, "\n\n".join(_experience(trials[at], episodes[at], prompt.role) for at in order))
            for prompt in prompts
        ]

    async def _criticise(self, study: Study, fault: _Fault) -> _Fault:
        """The textual gradient."""
        values = {
            "prompt": fault.branch.parent.texts[fault.prompt.name],
            "experience": fault.experience,
            "variant": fault.branch.number + 1,
        }
        try:
            critique = await study.reflect(
                filled(self.settings.gradient_template, fault.prompt, values), purpose="apo gradient"
            )
        except ReflectionError as error:
            study.note(f"apo gradient of {fault.prompt.name!r}: {error}")
            return fault
        return replace(fault, critique=critique.strip())

    async def _mend(self, study: Study, fault: _Fault) -> _Fault:
        """The edit that follows from it."""
        values = {
            "prompt": fault.branch.parent.texts[fault.prompt.name],
            "experience": fault.experience,
            "critique": fault.critique,
        }
        asked = question(self.settings.edit_template, fault.prompt, values)
        text = await propose(study, asked, fault.prompt, purpose="apo edit")
        return replace(fault, text=text or "")

    async def _reword(self, study: Study, child: _Child, variant: int) -> Candidate | None:
        """The same candidate with what was edited in it said otherwise."""
        texts = dict(child.candidate.texts)
        for prompt in child.edited:
            values = {"prompt": texts[prompt.name], "variant": variant}
            asked = question(self.settings.paraphrase_template, prompt, values)
            text = await propose(study, asked, prompt, purpose="apo paraphrase")
            if text is None:
                return None
            texts[prompt.name] = text
        return replace(child.candidate, texts=texts)

    async def _select(
        self, study: Study, pool: Sequence[Candidate], beam: Sequence[Candidate]
    ) -> tuple[list[Candidate], BudgetSpentError | None]:
        """The best of the pool on one batch of validation tasks; those of the beam stay where nothing is measured."""
        tasks = study.random.sample(list(study.val), min(self.settings.validation_batch, len(study.val)))
        played = await at_once(study.evaluate(candidate, tasks) for candidate in pool)
        scored = [
            (fmean(trial.score for trial in trials), candidate)
            for trials, candidate in zip(played.results, pool, strict=True)
            if trials
        ]
        if not scored:
            return list(beam), played.spent
        # Stable: of equals the older one, which stands first in the pool.
        scored.sort(key=lambda each: -each[0])
        return [candidate for _, candidate in scored[: self.settings.beam]], played.spent


@dataclass(frozen=True, slots=True)
class _Branch:
    """A parent and the tasks that its next text is to be learnt from."""

    number: int
    """From 0, over all rounds."""
    parent: Candidate
    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class _Fault:
    """A prompt of a branch on its way to a new text."""

    branch: _Branch
    prompt: TunedPrompt
    experience: str
    critique: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Child:
    """A new candidate, and the prompts whose texts are new in it."""

    candidate: Candidate
    edited: Sequence[TunedPrompt]


def _children(faults: Sequence[_Fault]) -> list[_Child]:
    """A candidate a branch, of the texts that were found for it."""
    by_branch: dict[int, list[_Fault]] = {}
    for fault in faults:
        by_branch.setdefault(fault.branch.number, []).append(fault)
    children = []
    for mended in by_branch.values():
        parent = mended[0].branch.parent
        texts = {**parent.texts, **{fault.prompt.name: fault.text for fault in mended}}
        why = {**parent.why, **{fault.prompt.name: fault.critique for fault in mended}}
        candidate = Candidate(texts, parents=(parent.id,), author=AUTHOR, why=why)
        children.append(_Child(candidate, [fault.prompt for fault in mended]))
    return children


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each text once, the first of equals."""
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.id, candidate)
    return list(first.values())


def _mean_of_role(trials: Sequence[Trial], role: str) -> float:
    """The role's own rewards, where it had any; else the team's."""
    return fmean(trial.role_scores.get(role, trial.score) for trial in trials)


def _experience(trial: Trial, episode: Episode, role: str) -> str:
    """What a role did in a trial, how it was judged and what came of it."""
    return f"# A task with the score {trial.score:g}\n\n{role_feedback(trial, episode, role)}"
