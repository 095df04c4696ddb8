"""The study of one run, as its optimiser sees it: a store, a runner and a model behind ``Study``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from coterie.episodes import Episode
from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.vocabulary import JSON, Metrics, Mode, Rollout, Task
from coterie_trainers.progress import Progress
from coterie_trainers.prompts.budget import Ledger
from coterie_trainers.prompts.candidates import Versions
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.playing import Played, Playing
from coterie_trainers.prompts.reflecting import Reflector
from coterie_trainers.prompts.scoring import role_scores, score
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Messages, Trial, TunedPrompt
from coterie_trainers.runners import tries
from coterie_trainers.sinks.sinks import Sinks

EPISODES_KEPT = 512
"""Episodes that stay in memory for who asks for them; older ones are read again."""
Key = tuple[str, str, int]
"""Candidate id, task id, sample."""


class Search:
    """A ``Study`` (``study.py``) over a store."""

    def __init__(
        self,
        config: OptimizeConfig,
        run_id: str,
        store: Store,
        splits: Mapping[str, Sequence[Task]],
        playing: Playing,
        reflector: Reflector,
        ledger: Ledger,
        journal: Journal,
        progress: Progress,
        *,
        prompts: Mapping[str, TunedPrompt],
        seed: Candidate,
        versions: Versions,
        pinned: Mapping[str, int],
        sinks: Sinks,
    ) -> None:
        """``pinned`` are resources that every rollout is pinned to beside the candidate's prompts."""
        self.config = config
        self.run_id = run_id
        self.store = store
        self.splits = splits
        self.playing = playing
        self.reflector = reflector
        self.ledger = ledger
        self.journal = journal
        self.progress = progress
        self.prompts = prompts
        self.seed = seed
        self.versions = versions
        self.pinned = pinned
        self.sinks = sinks
        self.random = random.Random(f"{config.seed}/optimiser")
        self._trials: dict[Key, asyncio.Future[Trial]] = {}
        self._episodes: dict[str, Episode] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._asked: Counter[str] = Counter()
        self._wholes: set[str] = set()
        """Candidates that were measured on all of ``val``."""
        self._aside = 0
        self._finalists_aside = 0
        self._measured = 0
        self._warned: set[str] = set()

    # What an optimiser sees

    @property
    def train(self) -> Sequence[Task]:
        """The tasks to learn from."""
        return self.splits["train"]

    @property
    def val(self) -> Sequence[Task]:
        """The tasks on which finalists are chosen."""
        return self.splits["val"]

    @property
    def score_range(self) -> tuple[float, float]:
        """The least and the largest score."""
        return self.config.reward.range

    async def evaluate(self, candidate: Candidate, tasks: Sequence[Task], *, samples: int = 1) -> Sequence[Trial]:
        """As ``Study.evaluate`` says."""
        hidden = {task.id for task in self.splits["test"]}
        if any(task.id in hidden for task in tasks):
            raise ConfigError("evaluate: tasks of the split 'test' are for the end of the run alone.")
        return await self.measure(candidate, tasks, samples=samples, mode=Mode.VAL)

    async def episodes(self, trials: Sequence[Trial]) -> Sequence[Episode]:
        """As ``Study.episodes`` says."""
        missing = [trial.rollout_id for trial in trials if trial.rollout_id not in self._episodes]
        read = await self.playing.read(missing)
        return [read.get(trial.rollout_id) or self._episodes[trial.rollout_id] for trial in trials]

    async def reflect(self, messages: Messages, *, purpose: str) -> str:
        """As ``Study.reflect`` says."""
        key = self._refusal_key("reflect", messages, purpose)
        self._refused_before(key)
        try:
            return await self.reflector.ask(messages, purpose)
        except BudgetSpentError as error:
            self._note_refusal(key, error)
            raise

    def note(self, text: str) -> None:
        """As ``Study.note`` says."""
        self.progress.note(text)

    # What the run asks for besides

    def put_aside(self, *, finalists: int, rest: int) -> None:
        """Keep the budget for so many finalists on all of ``val``, less those that were measured there already, and for so many
        rollouts besides.
        """
        self._finalists_aside, self._aside = finalists, rest
        self._tell_ledger()

    async def measure(
        self, candidate: Candidate, tasks: Sequence[Task], *, samples: int, mode: Mode
    ) -> Sequence[Trial]:
        """Play a candidate, on any split; cached by content.

        Raises:
            BudgetSpentError: not all of it can be paid for.
            RewardError: a reward is none that was declared.
        """
        keys = [(candidate.id, task.id, sample) for task in tasks for sample in range(samples)]
        refusal = self._refusal_key("evaluate", keys)
        self._refused_before(refusal)
        by_id = {task.id: task for task in tasks}
        fresh = [key for key in dict.fromkeys(keys) if key not in self._trials]
        self.versions.check(candidate)
        try:
            self.ledger.take_rollouts(len(fresh))
        except BudgetSpentError as error:
            self._note_refusal(refusal, error)
            raise
        loop = asyncio.get_running_loop()
        self._trials.update({key: loop.create_future() for key in fresh})
        if fresh:
            # A task of its own, so that who gives up waiting leaves no other waiting for ever.
            work = asyncio.create_task(self._play(candidate, fresh, by_id, mode))
            self._work.add(work)
            work.add_done_callback(self._work.discard)
        waited = [self._trials[key] for key in keys]
        await asyncio.wait(set(waited)) if waited else None
        faults = [one.exception() for one in waited]
        spent = next((fault for fault in faults if isinstance(fault, BudgetSpentError)), None)
        if spent is not None:
            self._note_refusal(refusal, spent)
            raise BudgetSpentError(str(spent))
        trials = [one.result() for one in waited]
        await self._write_down(candidate, tasks, samples, trials, fresh)
        return trials

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for work in self._work:
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for one in self._trials.values():
            one.cancel()

    async def _play(self, candidate: Candidate, keys: Sequence[Key], tasks: Mapping[str, Task], mode: Mode) -> None:
        futures = [self._trials[key] for key in keys]
        try:
            versions = {**self.pinned, **await self.versions.publish(candidate)}
            rollouts = [
                rollout_of(self.config, self.run_id, candidate.id, tasks[task_id], sample, mode, versions)
                for _, task_id, sample in keys
            ]
            for key, future, played in zip(keys, futures, await self.playing.play(rollouts), strict=True):
                if isinstance(played, BudgetSpentError):
                    self.ledger.give_back(1)
                    del self._trials[key]
                    future.set_exception(played)
                    future.exception()  # It may be that nobody waits any more.
                else:
                    self._settle(future, played, tasks[key[1]], key)
        except asyncio.CancelledError:
            for future in futures:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised again where the trials are awaited
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()

    def _settle(self, future: asyncio.Future[Trial], played: Played, task: Task, key: Key) -> None:
        for warning in played.warnings:
            # Rollouts and versions differ, and it is the same all the same.
            same = re.sub(r"\d+", "#", warning)
            if same not in self._warned:
                self._warned.add(same)
                self.progress.warn(f"rollout {played.rollout.id}: {warning}")
        self._episodes[played.rollout.id] = played.episode
        if len(self._episodes) > EPISODES_KEPT:
            del self._episodes[next(iter(self._episodes))]
        value, failure = score(played, self.config.reward)
        trial = Trial(key[0], task, key[2], played.rollout.id, value, failure, role_scores(played.episode))
        self.progress.advance(score=round(value, 3))
        future.set_result(trial)

    async def _write_down(
        self, candidate: Candidate, tasks: Sequence[Task], samples: int, trials: Sequence[Trial], fresh: Collection[Key]
    ) -> None:
        """The figures of an evaluation that was new, and what it leaves to be put aside."""
        needed = {
            (candidate.id, task.id, sample) for task in self.val for sample in range(self.config.selection.samples)
        }
        done = {key for key in needed if key in self._trials and self._trials[key].done()}
        if done == needed:
            self._wholes.add(candidate.id)
            self._tell_ledger()
        if not fresh:
            return
        self._measured += 1
        figures: dict[str, Any] = {
            "candidate": candidate.id,
            "author": candidate.author,
            "split": "/".join(sorted({task.split for task in tasks})),
            "tasks": len(tasks),
            "samples": samples,
            "score": fmean(trial.score for trial in trials),
            "failed": sum(trial.failure is not None for trial in trials),
            **{f"spent/{name}": value for name, value in self.ledger.figures().items()},
        }
        self.journal.write("seconds", {"seconds": self.ledger.seconds})
        step = self._measured
        await self.store.add_metrics([Metrics(self.run_id, step, figures, stage="search")])
        self.sinks.write("search", step, figures)

    def _tell_ledger(self) -> None:
        whole = len(self._wholes - {self.seed.id})
        left = max(0, self._finalists_aside - whole)
        self.ledger.keep(left * len(self.val) * self.config.selection.samples + self._aside)

    # Where the budget ended is where it ends again

    def _refusal_key(self, *what: JSON) -> str:
        digest = _digest(what)
        self._asked[digest] += 1
        return f"spent/{digest[:32]}/{self._asked[digest]}"

    def _refused_before(self, key: str) -> None:
        entry = self.journal.get(key)
        if entry is not None and entry["budget"] == self.config.budget.model_dump(mode="json"):
            raise BudgetSpentError(str(entry["said"]))

    def _note_refusal(self, key: str, error: BudgetSpentError) -> None:
        self.journal.write(key, {"said": str(error), "budget": self.config.budget.model_dump(mode="json")})


def rollout_of(
    config: OptimizeConfig,
    run_id: str,
    candidate_id: str,
    task: Task,
    sample: int,
    mode: Mode,
    versions: Mapping[str, int],
) -> Rollout:
    """The rollout of a candidate on a task: the same id whenever it is asked for."""
    sampling: dict[str, JSON] = {}
    if config.sampling.seeded:
        sampling["seed"] = int(_digest([config.seed, task.id, sample])[:7], 16)
    if config.sampling.temperature is not None:
        sampling["temperature"] = config.sampling.temperature
    return Rollout(
        task.id,
        mode=mode,
        id=f"ro-{_digest([run_id, candidate_id, task.id, sample])[:20]}",
        run_id=run_id,
        group_id=f"{run_id}/{task.id}",
        resources=versions,
        sampling=sampling,
        **tries(config.runner),
        metadata={"candidate": candidate_id, "sample": sample, "split": task.split},
    )


def _digest(value: JSON) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
