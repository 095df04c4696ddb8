"""Choosing: which finalist is best on validation, what it gains on test, and whether that is enough to take it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from coterie.vocabulary import JSON, Mode
from coterie_trainers.intervals import Interval, mean_interval
from coterie_trainers.prompts.search import Search
from coterie_trainers.prompts.selection import Flag, Gain, Race, flags_of, gain_shown, race
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Trial

Scores = Mapping[str, Sequence[float]]
"""Task id → a score a rollout."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner beside the seed."""

    winner: Candidate
    seed: Candidate
    finalists: Sequence[Candidate]
    """Those that raced, without the seed."""
    flags: Mapping[str, Sequence[Flag]]
    """Candidate → what is suspicious about its texts; those that were refused for it too."""
    race: Race
    val: Gain | None
    """What the winner gains on the validation tasks that it played. It was chosen there, so this is too high."""
    test_before: Interval | None
    """The seed on test; None if it could not be measured within the budget."""
    test_after: Interval | None
    test: Gain | None
    """What the winner gains on test."""
    taken: bool
    """Whether it takes the seed's place."""
    reason: str
    """Why, or why not."""

    @property
    def changed(self) -> bool:
        """Whether the winner is another than the seed."""
        return self.winner.id != self.seed.id


async def choose(search: Search, finalists: Sequence[Candidate]) -> Choice:
    """Let finalists and seed race on validation, measure the winner and the seed on test, and judge the gain.

    When the budget ends in the middle, what was measured until then decides, and what could not be shown is no gain.
    """
    settings, seed = search.config.selection, search.seed
    racing = _different(finalists, seed)
    flags = _flags(search, racing)
    if settings.flagged == "refuse":
        racing = [candidate for candidate in racing if candidate.id not in flags]
    racing = racing[: settings.finalists]
    search.progress.stage("choosing on validation", (len(racing) + 1) * len(search.val) * settings.samples)
    found = await race(
        search.evaluate,
        [seed, *racing],
        search.val,
        samples=settings.samples,
        confidence=settings.confidence,
        random=random.Random(f"{search.config.seed}/selection"),
        score_range=search.config.reward.range,
        flagged=flags,
    )
    if found.cut_short is not None:
        search.progress.warn(f"The finalists could not all be measured within the budget: {found.cut_short}")
    for out in found.dropped:
        search.progress.note(f"dropped after {out.tasks} tasks: {out.candidate}, {out.reason}")
    winner = found.winner
    changed = winner.id != seed.id
    val = _gain(found.scores[seed.id], found.scores[winner.id], settings.confidence) if changed else None
    search.put_aside(finalists=0, rest=0)
    before = await _on_test(search, seed, "the prompts as they are")
    after = await _on_test(search, winner, "the winner") if changed and before is not None else before
    test = _gain(before, after, settings.confidence) if changed and before and after else None
    taken, reason = _judged(settings.gate, changed, val, test)
    return Choice(
        winner=winner,
        seed=seed,
        finalists=racing,
        flags=flags,
        race=found,
        val=val,
        test_before=_mean(search, before),
        test_after=_mean(search, after),
        test=test,
        taken=taken,
        reason=reason,
    )


def interval_json(interval: Interval | None) -> JSON:
    """An interval for the store."""
    return None if interval is None else asdict(interval)


def _flags(search: Search, finalists: Sequence[Candidate]) -> dict[str, Sequence[Flag]]:
    """What is suspicious about finalists, told to the user."""
    settings = search.config.selection
    tasks = [task for split in search.splits.values() for task in split]
    found: dict[str, Sequence[Flag]] = {}
    for candidate in finalists:
        flags = flags_of(
            candidate, search.seed, search.prompts, tasks, growth=settings.growth, longest=settings.longest
        )
        for flag in flags:
            refused = ", so it is refused" if settings.flagged == "refuse" else ""
            search.progress.warn(f"{candidate.id} is flagged{refused}: {flag}")
        if flags:
            found[candidate.id] = flags
    return found


def _gain(before: Scores, after: Scores, confidence: float) -> Gain | None:
    """On the tasks that both have played."""
    both = before.keys() & after.keys()
    if not both:
        return None
    return gain_shown({t: before[t] for t in both}, {t: after[t] for t in both}, confidence=confidence)


def _mean(search: Search, scores: Scores | None) -> Interval | None:
    level = search.config.selection.confidence
    return mean_interval(scores, level=level, seed=search.config.seed) if scores else None


async def _on_test(search: Search, candidate: Candidate, name: str) -> Scores | None:
    settings, tasks = search.config.selection, search.splits["test"]
    if not tasks:
        return None
    search.progress.stage(f"held-out test: {name}", len(tasks) * settings.test_samples)
    try:
        return scores_of(await search.measure(candidate, tasks, samples=settings.test_samples, mode=Mode.TEST))
    except BudgetSpentError as error:
        search.progress.warn(f"{name[:1].upper()}{name[1:]} could not be measured on test within the budget: {error}")
        return None


def _judged(gate: str, changed: bool, val: Gain | None, test: Gain | None) -> tuple[bool, str]:
    if not changed:
        return False, "no candidate did better on validation than the prompts as they are"
    if gate == "none":
        return True, "the winner on validation is taken as it is (selection.gate is none)"
    shown = test if gate == "test" else val
    if shown is None:
        return False, f"the gain could not be measured on {gate}"
    return shown.shown, f"on {gate}: {shown.reason}"


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
