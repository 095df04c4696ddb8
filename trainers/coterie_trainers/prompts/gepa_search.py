"""A search by the package ``gepa``: our study as its adapter, its pool as our candidates.

The package is synchronous. It runs in a thread of its own and waits there for coroutines that run on our event loop; nothing
polls. It saves nothing (``run_dir``): a run that was cut off is played again from the start, out of the study's cache.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
import zlib
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gepa.api import optimize
from gepa.core.adapter import EvaluationBatch
from gepa.core.callbacks import EvaluationStartEvent, IterationEndEvent, ValsetEvaluatedEvent
from gepa.core.state import GEPAState
from gepa.proposer.base import CandidateProposal
from gepa.strategies.proposal_sampling import IndependentSampling

from coterie.vocabulary import Task
from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.blame import blame
from coterie_trainers.prompts.feedback import role_feedback, whole_trace
from coterie_trainers.prompts.proposing import proposal, question
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Study, Trial

if TYPE_CHECKING:
    from coterie_trainers.prompts.optimisers.gepa import GepaSettings

AUTHOR = "optimiser:gepa"
T = TypeVar("T")
Texts = dict[str, str]
Batch = EvaluationBatch[Trial, Trial]
_log = logging.getLogger("coterie.prompts.gepa")


class GepaSearch:
    """One search."""

    def __init__(self, study: Study, settings: GepaSettings) -> None:
        self.study = study
        self.settings = settings
        self.loop = _Loop()
        self.pool = _Pool(study)
        self.adapter = _Adapter(study, settings, self.loop, self.pool)

    async def run(self) -> Sequence[Candidate]:
        """What ``Gepa`` gives."""
        seed = self.study.random.getrandbits(64)
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="gepa") as pool:
            # The context goes along, so that what runs on the loop for the thread sees what we see.
            search = contextvars.copy_context().run
            thread = asyncio.get_running_loop().run_in_executor(pool, search, self._optimize, seed)
            try:
                await asyncio.shield(thread)
            except asyncio.CancelledError:
                self.loop.stop()
                await asyncio.wait([thread])
                raise
        stopped_by = self.loop.stopped_by
        if isinstance(stopped_by, BudgetSpentError):
            self.study.note(f"gepa: the budget is spent: {stopped_by}")
        elif stopped_by is not None:
            raise stopped_by
        self.study.note(self._summary())
        return self.pool.finalists()

    def _optimize(self, seed: int) -> None:
        study, settings = self.study, self.settings
        stop = _Stop(settings.iterations, settings.patience, self.adapter)
        try:
            optimize(
                seed_candidate={ComponentName(name): text for name, text in study.seed.texts.items()},
                trainset=list(study.train),
                valset=list(study.val),
                adapter=self.adapter,  # type: ignore[arg-type]
                reflection_minibatch_size=settings.minibatch,
                module_selector=self._chooser(),
                acceptance_criterion=_Accept(study, by_role=settings.accepted_by == "role"),
                sampling_strategy=IndependentSampling(settings.children),
                use_merge=settings.merge and len(study.prompts) > 1,
                max_merge_invocations=settings.merges,
                merge_val_overlap_floor=min(5, len(study.val)),
                perfect_score=1.0,
                stop_callbacks=stop,
                callbacks=[self.pool, stop],  # type: ignore[list-item]
                logger=_Log(),
                track_best_outputs=False,
                seed=seed,
            )
        except _Halt:
            _log.debug("gepa was ended by %r", self.loop.stopped_by)

    def _chooser(self) -> Any:
        return _ByCredit(self.adapter) if self.settings.chosen_by == "credit" else self.settings.chosen_by

    def _summary(self) -> str:
        adapter, scores = self.adapter, self.pool.scores
        best = f", the best {max(scores.values()):g} on validation" if scores else ""
        return (
            f"gepa: {max(len(scores) - 1, 0)} new candidates in the pool{best}; "
            f"{adapter.proposed} proposals, {adapter.refused} of no use."
        )


class ComponentName(str):
    """A prompt's name whose hash is the same in every process: gepa iterates over a set of names while it draws."""

    __slots__ = ()

    def __hash__(self) -> int:
        return zlib.crc32(self.encode())


class _Halt(BaseException):
    """Ends gepa, which goes on after any ``Exception``."""


class _Loop:
    """Lets gepa's thread wait for coroutines that run on the event loop."""

    def __init__(self) -> None:
        self.stopped_by: BaseException | None = None
        """Why nothing is awaited any more."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._awaited: concurrent.futures.Future[Any] | None = None

    def wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        """What a coroutine gives.

        Raises:
            _Halt: it raised something, which is kept; or ``stop`` was called.
        """
        with self._lock:
            if self.stopped_by is not None:
                awaited.close()
                raise _Halt
            future = asyncio.run_coroutine_threadsafe(awaited, self._loop)
            self._awaited = future
        try:
            return future.result()
        except BaseException as error:
            self.stopped_by = self.stopped_by or error
            raise _Halt from error

    def stop(self) -> None:
        """End what is awaited, and gepa with it."""
        with self._lock:
            self.stopped_by = self.stopped_by or asyncio.CancelledError()
            if self._awaited is not None:
                self._awaited.cancel()


class _Pool:
    """gepa's candidates as ours. A callback of gepa."""

    def __init__(self, study: Study) -> None:
        self.scores: dict[str, float] = {}
        """Candidate id → mean score on validation, in the order in which they came into the pool."""
        self._known: dict[str, Candidate] = {study.seed.id: study.seed}
        self._by_place: dict[int, str] = {}
        self._unmeasured: dict[str, Candidate] = {}
        self._parents: tuple[str, ...] = ()
        self._why: dict[tuple[str, str], str] = {}
        self._study = study

    def candidate(self, texts: Mapping[str, str]) -> Candidate:
        """The candidate with these texts. One that was not made by ``child`` is a merge."""
        plain = {str(name): text for name, text in texts.items()}
        made = Candidate(plain, parents=self._parents, author=AUTHOR, why=self._whys(plain))
        return self._known.setdefault(made.id, made)

    def child(self, parent: Candidate, texts: Mapping[str, str], why: Mapping[str, str]) -> None:
        """New texts, by name, were written for a parent."""
        whole = {**parent.texts, **texts}
        for name, text in texts.items():
            self._why.setdefault((name, text), why[name])
        made = Candidate(whole, parents=(parent.id,), author=AUTHOR, why=self._whys(whole))
        self._known.setdefault(made.id, made)

    def not_paid_for(self, candidate: Candidate) -> None:
        """It was to be measured on validation when the budget ended."""
        self._unmeasured[candidate.id] = candidate

    def finalists(self) -> list[Candidate]:
        """All but the seed, best first, then those that were not measured."""
        measured = sorted(self.scores, key=lambda id_: -self.scores[id_])
        every = [self._known[id_] for id_ in measured] + [*self._unmeasured.values()]
        return list({each.id: each for each in every if each.id != self._study.seed.id}.values())

    def on_evaluation_start(self, event: EvaluationStartEvent) -> None:
        """Remember whom a merge is made of: it is evaluated next."""
        self._parents = tuple(self._by_place[place] for place in event["parent_ids"] if place in self._by_place)

    def on_valset_evaluated(self, event: ValsetEvaluatedEvent) -> None:
        """A candidate came into the pool."""
        candidate = self.candidate(event["candidate"])
        self._by_place[event["candidate_idx"]] = candidate.id
        low, high = self._study.score_range
        self.scores[candidate.id] = low + (2 * event["average_score"] - 1) * (high - low)

    def _whys(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {name: self._why[name, text] for name, text in texts.items() if (name, text) in self._why}


class _Adapter:
    """A study as gepa sees it: tasks are its data, trials its outputs and its trajectories."""

    def __init__(self, study: Study, settings: GepaSettings, loop: _Loop, pool: _Pool) -> None:
        self.study = study
        self.settings = settings
        self.loop = loop
        self.pool = pool
        self.played: set[tuple[str, str]] = set()
        """Candidate and task ids."""
        self.proposed = 0
        self.refused = 0
        """Proposals without a text that can be used and is new."""

    def evaluate(self, batch: list[Task], candidate: Texts, capture_traces: bool = False) -> Batch:  # noqa: ARG002
        """Play a candidate."""
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[Texts, list[Task]]]) -> list[Batch]:
        """Play several candidates at once."""
        return self.loop.wait(self._evaluate([(self.pool.candidate(texts), batch) for texts, batch in items]))

    def make_reflective_dataset(
        self, _candidate: Texts, eval_batch: Batch, components_to_update: list[str]
    ) -> dict[str, list[dict[str, str]]]:
        """What was seen of the role of each prompt, the worst trial first."""
        return self.loop.wait(self._experiences(eval_batch.outputs, components_to_update))

    def propose_new_texts(
        self,
        candidate: Texts,
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> Texts:
        """New texts from the reflecting model, by name; only those that can be used and say something new."""
        return self.loop.wait(self._propose(candidate, reflective_dataset, components_to_update))

    def blamed(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Prompt name → the blame of its role in these trials."""
        return self.loop.wait(self._blamed(trials))

    async def _evaluate(self, items: Sequence[tuple[Candidate, Sequence[Task]]]) -> list[Batch]:
        # A batch that gepa pads may hold a task twice.
        asked = [list({task.id: task for task in batch}.values()) for _, batch in items]
        gathered = await at_once(
            self.study.evaluate(candidate, tasks) for (candidate, _), tasks in zip(items, asked, strict=True)
        )
        if gathered.spent is not None:
            on_validation = {task.id for task in self.study.val}
            for candidate, batch in items:
                if on_validation.issuperset(task.id for task in batch):
                    self.pool.not_paid_for(candidate)
            raise gathered.spent
        batches = []
        for (_, batch), trials in zip(items, gathered.results, strict=True):
            by_task = {trial.task.id: trial for trial in trials or ()}
            played = [by_task[task.id] for task in batch]
            self.played |= {(trial.candidate, trial.task.id) for trial in played}
            batches.append(Batch(outputs=played, scores=[self._scaled(trial) for trial in played], trajectories=played))
        return batches

    def _scaled(self, trial: Trial) -> float:
        low, high = self.study.score_range
        return (1 + (trial.score - low) / (high - low)) / 2

    async def _experiences(self, trials: Sequence[Trial], names: Sequence[str]) -> dict[str, list[dict[str, str]]]:
        worst_first = sorted({trial.rollout_id: trial for trial in trials}.values(), key=lambda trial: trial.score)
        episodes = await self.study.episodes(worst_first)
        limit = self.settings.max_chars // len(worst_first)
        by_role = self.settings.view == "role"
        return {
            name: [
                {
                    "experience": str(role_feedback(trial, episode, self.study.prompts[name].role, limit=limit))
                    if by_role
                    else whole_trace(trial, episode, limit=limit)
                }
                for trial, episode in zip(worst_first, episodes, strict=True)
            ]
            for name in map(str, names)
        }

    async def _propose(
        self, texts: Texts, dataset: Mapping[str, Sequence[Mapping[str, Any]]], components: Sequence[str]
    ) -> Texts:
        parent = self.pool.candidate(texts)
        prompts = [self.study.prompts[str(name)] for name in components]
        asked = [
            question(
                self.settings.template,
                prompt,
                {"prompt": parent.texts[prompt.name], "experience": _told(dataset[prompt.name])},
            )
            for prompt in prompts
        ]
        gathered = await at_once(
            proposal(self.study, text, prompt, purpose="gepa proposal")
            for text, prompt in zip(asked, prompts, strict=True)
        )
        if gathered.spent is not None:
            raise gathered.spent
        new = {
            prompt.name: found
            for prompt, found in zip(prompts, gathered.results, strict=True)
            if found is not None and found.text != parent.texts[prompt.name]
        }
        self.proposed += len(prompts)
        self.refused += len(prompts) - len(new)
        self.pool.child(parent, {name: each.text for name, each in new.items()}, {n: e.why for n, e in new.items()})
        return {ComponentName(name): each.text for name, each in new.items()}

    async def _blamed(self, trials: Sequence[Trial]) -> dict[str, float]:
        episodes = await self.study.episodes(trials)
        roles = [prompt.role for prompt in self.study.prompts.values()]
        shares = [
            blame(trial, episode, roles, self.study.score_range)
            for trial, episode in zip(trials, episodes, strict=True)
        ]
        return {name: sum(share[prompt.role] for share in shares) for name, prompt in self.study.prompts.items()}


class _ByCredit:
    """Which prompts to change: the most blamed, less what was tried. A module selector of gepa."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter
        self._tried: dict[int, Counter[str]] = {}
        """By the parent's place in gepa's pool."""

    def __call__(
        self,
        _state: GEPAState[Trial, int],
        trajectories: list[Trial],
        _subsample_scores: list[float],
        candidate_idx: int,
        _candidate: Texts,
    ) -> list[str]:
        """The names of the prompts to change, most blamed first."""
        blamed = self._adapter.blamed(trajectories)
        tried = self._tried.setdefault(candidate_idx, Counter())
        together = min(1 + tried.total() // (2 * len(blamed)), len(blamed))
        # Stable: of equals the one that stands first in the study.
        order = sorted(blamed, key=lambda name: -blamed[name] / (1 + tried[name]))
        tried.update(order[:together])
        return [ComponentName(name) for name in order[:together]]


class _Accept:
    """Whether a child is better than its parent on the minibatch. An acceptance criterion of gepa."""

    def __init__(self, study: Study, *, by_role: bool) -> None:
        self._roles = {name: prompt.role for name, prompt in study.prompts.items()}
        self._by_role = by_role

    def should_accept(self, proposal: CandidateProposal[int], state: GEPAState[Trial, int]) -> bool:
        """True for a higher sum of scores, or an equal one and higher rewards of the changed roles' own."""
        assert proposal.eval_before is not None
        assert proposal.eval_after is not None
        before, after = sum(proposal.eval_before.scores), sum(proposal.eval_after.scores)
        if abs(after - before) > 1e-9 or not self._by_role:
            return after > before + 1e-9
        parent = state.program_candidates[proposal.parent_program_ids[0]]
        roles = {self._roles[str(name)] for name, text in proposal.candidate.items() if parent[name] != text}
        return _own(proposal.eval_after.outputs, roles) > _own(proposal.eval_before.outputs, roles) + 1e-9


class _Stop:
    """When to end for another reason than the budget. A stop condition and a callback of gepa."""

    def __init__(self, iterations: int | None, patience: int, adapter: _Adapter) -> None:
        self._iterations, self._patience, self._adapter = iterations, patience, adapter
        self._known = 0
        self._idle = 0

    def __call__(self, gepa_state: GEPAState[Trial, int]) -> bool:
        """True to end."""
        return self._idle >= self._patience or (self._iterations is not None and gepa_state.i + 1 >= self._iterations)

    def on_iteration_end(self, _event: IterationEndEvent) -> None:
        """Count iterations that played nothing new."""
        known, self._known = self._known, len(self._adapter.played)
        self._idle = self._idle + 1 if self._known == known else 0


class _Log:
    """What gepa tells goes to the log, not to the user's terminal."""

    def log(self, message: str) -> None:
        """One message."""
        _log.debug("%s", message)


def _own(trials: Sequence[Trial], roles: set[str]) -> float:
    return sum(trial.role_scores.get(role, 0.0) for trial in trials for role in roles)


def _told(experiences: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"# Task {number}\n{each['experience']}" for number, each in enumerate(experiences, 1))
