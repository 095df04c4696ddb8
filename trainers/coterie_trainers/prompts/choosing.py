"""Choosing: which finalist is best on validation, what it gains on test, and whether that is enough to take it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from coterie.vocabulary import JSON, Mode
from coterie_trainers.intervals import Interval, difference_interval, mean_interval
from coterie_trainers.prompts.search import Search
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Trial

Scores = Mapping[str, Sequence[float]]
"""Task id → a score a rollout."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate on validation."""

    candidate: Candidate
    scores: Scores

    @property
    def mean(self) -> float:
        """Over all rollouts."""
        return fmean(score for scores in self.scores.values() for score in scores)


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner beside the seed."""

    winner: Candidate
    seed: Candidate
    standings: Sequence[Standing]
    """The seed and all finalists that were measured, best first."""
    val: Interval | None
    """What the winner gains on validation. It was chosen there, so this is too high."""
    test_before: Interval | None
    """The seed on test; None if it could not be measured within the budget."""
    test_after: Interval | None
    test: Interval | None
    """What the winner gains on test."""
    taken: bool
    """Whether it takes the seed's place."""
    reason: str
    """Why, or why not, in a sentence."""


async def choose(search: Search, finalists: Sequence[Candidate]) -> Choice:
    """Measure finalists and seed on validation, the winner and the seed on test, and judge the gain.

    When the budget ends in the middle, what was measured until then decides, and what could not be shown is no gain.
    """
    settings = search.config.selection
    standings = await _on_validation(search, _different(finalists, search.seed)[: settings.finalists])
    winner = standings[0].candidate
    seed_val = next(one for one in standings if one.candidate.id == search.seed.id)
    changed = winner.id != search.seed.id
    level, chance = settings.confidence, search.config.seed
    val = (
        difference_interval(seed_val.scores, standings[0].scores, level=level, seed=chance)
        if changed and standings[0].scores.keys() == seed_val.scores.keys()
        else None
    )
    search.put_aside(finalists=0, rest=0)
    before = await _on_test(search, search.seed, "seed")
    after = await _on_test(search, winner, "winner") if changed and before is not None else before
    test = difference_interval(before, after, level=level, seed=chance) if changed and before and after else None
    taken, reason = _judged(settings.gate, changed, val, test)
    return Choice(
        winner=winner,
        seed=search.seed,
        standings=standings,
        val=val,
        test_before=mean_interval(before, level=level, seed=chance) if before else None,
        test_after=mean_interval(after, level=level, seed=chance) if after else None,
        test=test,
        taken=taken,
        reason=reason,
    )


def interval_json(interval: Interval | None) -> JSON:
    """An interval for the store."""
    return None if interval is None else asdict(interval)


async def _on_validation(search: Search, finalists: Sequence[Candidate]) -> list[Standing]:
    """The seed and the finalists by their mean on validation, best first; of equals the seed, then the optimiser's guess."""
    settings = search.config.selection
    search.progress.stage("choosing on validation", (len(finalists) + 1) * len(search.val) * settings.samples)
    standings = []
    for candidate in (search.seed, *finalists):
        try:
            trials = await search.measure(candidate, search.val, samples=settings.samples, mode=Mode.VAL)
        except BudgetSpentError as error:
            search.progress.warn(f"A finalist could not be measured within the budget and is out: {error}")
            continue
        standings.append(Standing(candidate, scores_of(trials)))
    return sorted(standings, key=lambda one: -one.mean)


async def _on_test(search: Search, candidate: Candidate, name: str) -> Scores | None:
    settings, tasks = search.config.selection, search.splits["test"]
    search.progress.stage(f"held-out test: {name}", len(tasks) * settings.test_samples)
    try:
        return scores_of(await search.measure(candidate, tasks, samples=settings.test_samples, mode=Mode.TEST))
    except BudgetSpentError as error:
        search.progress.warn(f"The {name} could not be measured on test within the budget: {error}")
        return None


def _judged(gate: str, changed: bool, val: Interval | None, test: Interval | None) -> tuple[bool, str]:
    if not changed:
        return False, "no candidate did better on validation than the prompts as they are"
    if gate == "none":
        return True, "the winner on validation is taken as it is"
    shown = test if gate == "test" else val
    if shown is None:
        return False, f"the gain could not be measured on {gate}"
    told = f"{shown.value:+.3f} on {gate} [{shown.low:+.3f}, {shown.high:+.3f}]"
    if shown.low > 0:
        return True, f"the gain is {told}"
    return False, f"the gain is not shown: {told}"


def scores_of(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """Task id → a score a rollout."""
    found: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        found[trial.task.id].append(trial.score)
    return dict(found)


def _different(finalists: Sequence[Candidate], seed: Candidate) -> list[Candidate]:
    """Each once, without the seed."""
    by_id = {candidate.id: candidate for candidate in reversed(finalists)}
    by_id.pop(seed.id, None)
    order = dict.fromkeys(candidate.id for candidate in finalists)
    return [by_id[id_] for id_ in order if id_ in by_id]
