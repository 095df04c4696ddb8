"""A race: the finalists play the same validation tasks, and whoever is certainly worse than the leader stops early.

All candidates begin with a few tasks; each round doubles how many they have played (successive halving, arXiv 1502.07943),
in one random order of the tasks, each task with the same sampling seeds for all. After a round, a candidate is dropped if
the leader is better *for certain*; never only because it stands low. What is left plays all tasks, and the best mean wins.

**The bound.** A task is one observation, however many samples it has: with dᵢ the leader's mean on the i-th task less the
candidate's, and R the width of the reward's range, dᵢ / R lies within ±1. Were the candidate as good as the leader or
better, nobody could win in the long run by betting that dᵢ is positive: for each stake λ in (0, 1),

    W(λ) = ∏ᵢ (1 + λ dᵢ / R)      has a mean of at most 1, and so has E, the mean of W(λ) over a grid of stakes,

a supermartingale. By Ville's inequality E ever reaches 1/δ with probability at most δ: it may be looked at after every
round without a correction for looking often. The candidate is dropped when E ≥ (K - 1) / (1 - confidence), with K the
candidates: whoever leads when, the best one is ever dropped with probability at most 1 - confidence (a union over the
K - 1 that it is compared with). For tasks that are drawn alike and independently; nothing else is assumed.

Sources: betting, arXiv 2010.09686 (Waudby-Smith and Ramdas); a mixture over stakes, arXiv 2110.14099 (Orabona and Jun);
racing: Maron and Moore, "Hoeffding races" (1993). Why not an empirical Bernstein bound (arXiv 0907.3740), the usual one for
races: its term 7 R ln(2/δ) / 3(n - 1) alone exceeds every possible difference below some 20 tasks, where six won bets are as
good as six won coin tosses. Why not the bootstrap: with few tasks it is too sure of itself.
"""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.prompts.at_once import at_once
from coterie_trainers.prompts.study import Candidate, Trial

FIRST_ROUND = 8
"""Tasks of the first round. On fewer no candidate of several can be dropped at the usual confidence, however bad it is."""

STAKES = np.linspace(0.05, 0.95, 19)
"""The stakes that are mixed: low ones win on small, steady differences, high ones on large differences."""


class Evaluate(Protocol):
    """``Study.evaluate``."""

    async def __call__(self, candidate: Candidate, tasks: Sequence[Task], *, samples: int = 1) -> Sequence[Trial]:
        """Play a candidate: ``samples`` rollouts of each task."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """How the race stood after a round."""

    tasks: int
    """How many tasks each that was still in the race had played by then."""
    means: Mapping[str, float]
    """Candidate → its mean over these tasks, the best first."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a candidate did not go the whole way."""

    candidate: str
    by: str
    """The leader at the time."""
    tasks: int
    """Tasks that both had played."""
    reason: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Race:
    """How a race ended."""

    winner: Candidate
    rounds: Sequence[Round]
    dropped: Sequence[Dropped]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """Candidate → task → the score of each sample: all that was measured, for those that were dropped too."""
    cut_short: str | None = None
    """Why not all tasks were played, where the budget ended; the winner is then the best by what all had played."""


async def race(
    evaluate: Evaluate,
    candidates: Sequence[Candidate],
    tasks: Sequence[Task],
    *,
    samples: int = 1,
    confidence: float = 0.95,
    random: random_module.Random,
    score_range: tuple[float, float] = (0.0, 1.0),
    flagged: Collection[str] = (),
) -> Race:
    """Find the best of the candidates on these tasks, without playing all of it for those that are certainly worse.

    Args:
        evaluate: The study's.
        candidates: The seed first: of equals the earlier one wins, so that nothing is changed without a gain.
        tasks: The validation split.
        samples: Rollouts a task.
        confidence: With this probability at least the best candidate is not dropped.
        random: Puts the tasks in order.
        score_range: The least and the largest score.
        flagged: Ids of candidates that lose against an equal one that is not flagged.

    Raises:
        ConfigError: no candidate, no task, a bad ``confidence`` or ``samples``, or a score outside of the range.
    """
    field = list({candidate.id: candidate for candidate in reversed(candidates)}.values())[::-1]
    _check(field, tasks, samples, confidence, score_range)
    order = random.sample(list(tasks), len(tasks))
    needed = max(1, len(field) - 1) / (1 - confidence)
    scores: dict[str, dict[str, Sequence[float]]] = {candidate.id: {} for candidate in field}
    rounds: list[Round] = []
    dropped: list[Dropped] = []
    cut_short = None
    played = 0
    for upto in _rounds(len(order)):
        now = order[played:upto]
        measured = await at_once(evaluate(candidate, now, samples=samples) for candidate in field)
        for candidate, trials in zip(field, measured.results, strict=True):
            scores[candidate.id] |= _by_task(trials or (), score_range)
        if measured.spent:
            cut_short = str(measured.spent)
            break
        played = upto
        means = _means(field, scores, order[:played])
        leader = _best(field, means, flagged)
        rounds.append(Round(played, dict(sorted(means.items(), key=lambda each: -each[1]))))
        field, out = _compare(field, leader, scores, order[:played], needed, score_range)
        dropped += [_dropped(candidate, leader, means, played, e) for candidate, e in out]
        if len(field) == 1:
            break
    if not rounds:
        field = [candidate for candidate in field if scores[candidate.id]] or field[:1]
        means = _means(field, scores, order[: min(FIRST_ROUND, len(order))])
    return Race(_best(field, means, flagged), rounds, dropped, scores, cut_short)


def evidence(differences: Sequence[float]) -> float:
    """How strongly differences speak against a mean of at most 0: 1 says nothing, E and more has a chance below 1 / E.

    Args:
        differences: One a task, divided by the width of the reward's range: within ±1.
    """
    wealth_S = np.log1p(np.outer(STAKES, np.asarray(differences, dtype=np.float64))).sum(axis=1)
    top = float(wealth_S.max())
    # Not beyond what a float holds: a race over thousands of tasks.
    return math.exp(min(700.0, top + math.log(float(np.exp(wealth_S - top).mean()))))


def _rounds(tasks: int) -> list[int]:
    """How many tasks are played after each round."""
    ends = [min(FIRST_ROUND, tasks)]
    while ends[-1] < tasks:
        ends.append(min(2 * ends[-1], tasks))
    return ends


def _compare(
    field: Sequence[Candidate],
    leader: Candidate,
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    tasks: Sequence[Task],
    needed: float,
    score_range: tuple[float, float],
) -> tuple[list[Candidate], list[tuple[Candidate, float]]]:
    """Who stays, and who is dropped on what evidence."""
    width = score_range[1] - score_range[0]
    stay: list[Candidate] = []
    out: list[tuple[Candidate, float]] = []
    for candidate in field:
        mine, best = scores[candidate.id], scores[leader.id]
        found = evidence([(_mean(best[task.id]) - _mean(mine[task.id])) / width for task in tasks])
        if found >= needed:
            out.append((candidate, found))
        else:
            stay.append(candidate)
    return stay, out


def _dropped(candidate: Candidate, leader: Candidate, means: Mapping[str, float], tasks: int, found: float) -> Dropped:
    reason = (
        f"mean {means[candidate.id]:.3g} against {means[leader.id]:.3g} of the leader on the same {tasks} tasks; "
        f"were it as good, this had a chance below {1 / found:.2g}"
    )
    return Dropped(candidate.id, leader.id, tasks, reason)


def _best(field: Sequence[Candidate], means: Mapping[str, float], flagged: Collection[str]) -> Candidate:
    """The best mean; of equals one that is not flagged, then the earliest."""
    return min(field, key=lambda each: (-means.get(each.id, -math.inf), each.id in flagged))


def _means(
    field: Sequence[Candidate], scores: Mapping[str, Mapping[str, Sequence[float]]], tasks: Sequence[Task]
) -> dict[str, float]:
    """Candidate → its mean over tasks that it has played all of."""
    means = {}
    for id_ in [candidate.id for candidate in field]:
        mine = scores[id_]
        if all(task.id in mine for task in tasks):
            # fsum, so that equal scores in another order are equal.
            means[id_] = math.fsum(_mean(mine[task.id]) for task in tasks) / len(tasks)
    return means


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _by_task(trials: Sequence[Trial], score_range: tuple[float, float]) -> dict[str, Sequence[float]]:
    low, high = score_range
    found: dict[str, list[float]] = {}
    for trial in trials:
        if not low <= trial.score <= high:
            raise ConfigError(
                f"race: rollout {trial.rollout_id} scored {trial.score:g}, outside of {low:g} to {high:g}. "
                "Set reward.range to what the reward may be."
            )
        found.setdefault(trial.task.id, []).append(trial.score)
    return dict(found)


def _check(
    field: Sequence[Candidate],
    tasks: Sequence[Task],
    samples: int,
    confidence: float,
    score_range: tuple[float, float],
) -> None:
    if not field:
        raise ConfigError("race: there is no candidate. Give the seed at least.")
    if not tasks:
        raise ConfigError("race: there is no validation task to choose a winner on. Give the dataset a 'val' split.")
    if samples < 1:
        raise ConfigError(f"race: samples is {samples}; it must be at least 1.")
    if not 0.5 < confidence < 1:
        raise ConfigError(f"race: confidence is {confidence}; it must lie between 0.5 and 1, such as 0.95.")
    if not score_range[0] < score_range[1]:
        raise ConfigError(f"race: the range of scores {score_range} is empty; the first must be below the second.")
