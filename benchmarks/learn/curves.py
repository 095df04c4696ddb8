"""From runs to figures: curves over seeds, and the budget to reach what another variant ends with.

A *look* is success on the validation split after so many training rollouts, the first one before training on the test
split. Looks are noisy, so a curve is smoothed: each point is the mean of three looks, itself and its neighbours. What a
variant ends with is the last point of its mean curve over seeds. The budget to reach a success is the number of training
rollouts at which the mean curve first comes to it, between two looks on a straight line; the ratio divides it by the
budget that the baseline itself takes to come to its own final success, so that a baseline that has long been level has
no longer budget than it needs.

Intervals: percentile bootstrap over seeds, 95 %. Each draw takes the same seeds of both variants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure and its interval over seeds; no interval from a single seed."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What the seeds of one variant of one task say."""

    task: str
    variant: str
    seeds: tuple[int, ...]
    rollouts_P: NDArray[np.float64]
    """Training rollouts before each point of the curve."""
    success_S_P: NDArray[np.float64]
    """Seeds × points, smoothed."""
    start: Spread
    """Sampled success on the test split before training."""
    final: Spread
    """The same after, with the weights that did best on validation."""
    ratio: Spread | None
    """Of budgets, against the baseline's; infinite where its final success was not reached; None without a baseline."""
    train_seconds: float
    """The mean over seeds."""


def variant_figures(runs: Sequence[Mapping[str, Any]], baseline: str) -> list[VariantFigures]:
    """The figures of each task and variant, the baseline of a task first."""
    grouped: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        grouped.setdefault((run["task"], run["variant"]), {})[run["seed"]] = run
    return [
        _figures(task, variant, by_seed, grouped.get((task, baseline)))
        for (task, variant), by_seed in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][1] != baseline))
    ]


def _figures(
    task: str, variant: str, by_seed: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]] | None
) -> VariantFigures:
    seeds = tuple(sorted(by_seed))
    rollouts_P, success_S_P = _curves([by_seed[seed] for seed in seeds])
    ratio = None
    if base is not None:
        shared = [seed for seed in seeds if seed in base]
        if shared:
            base_P, base_S_P = _curves([base[seed] for seed in shared])
            own_P, own_S_P = _curves([by_seed[seed] for seed in shared])
            ratio = _over_seeds(len(shared), lambda draw: _ratio(own_P, own_S_P[draw], base_P, base_S_P[draw]))
    test = {
        when: np.array([by_seed[seed]["figures"][f"success_{when}"] for seed in seeds]) for when in ("before", "after")
    }
    return VariantFigures(
        task=task,
        variant=variant,
        seeds=seeds,
        rollouts_P=rollouts_P,
        success_S_P=success_S_P,
        start=_over_seeds(len(seeds), lambda draw: float(test["before"][draw].mean())),
        final=_over_seeds(len(seeds), lambda draw: float(test["after"][draw].mean())),
        ratio=ratio,
        train_seconds=float(np.mean([by_seed[seed]["figures"]["train_seconds"] for seed in seeds])),
    )


def _curves(runs: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rollouts of each point, and the smoothed curves of the runs, cut to the shortest."""
    looks = [
        [(0, run["figures"]["success_before"])] + [(p["step"], p["success"]) for p in run["figures"]["curve"]["val"]]
        for run in runs
    ]
    points = min(map(len, looks))
    a_step = runs[0]["figures"]["rollouts_by_mode"]["train"] / runs[0]["figures"]["steps"]
    rollouts_P = np.array([step for step, _ in looks[0][:points]], dtype=np.float64) * a_step
    raw_S_P = np.array([[success for _, success in each[:points]] for each in looks], dtype=np.float64)
    return rollouts_P, smoothed(raw_S_P)


def smoothed(raw_S_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of three; the first point stays as it is, the last is the mean of the last three."""
    smooth_S_P = raw_S_P.copy()
    for place in range(1, raw_S_P.shape[1]):
        middle = min(place, raw_S_P.shape[1] - 2)
        smooth_S_P[:, place] = raw_S_P[:, max(0, middle - 1) : middle + 2].mean(axis=1)
    return smooth_S_P


def budget_to_reach(rollouts_P: NDArray[np.float64], success_P: NDArray[np.float64], wanted: float) -> float:
    """Rollouts at which the curve first comes to ``wanted``; infinite where it does not."""
    if success_P[0] >= wanted:
        return float(rollouts_P[0])
    for place in range(1, len(success_P)):
        low, high = success_P[place - 1], success_P[place]
        if high >= wanted:
            share = (wanted - low) / (high - low)
            return float(rollouts_P[place - 1] + share * (rollouts_P[place] - rollouts_P[place - 1]))
    return math.inf


def _ratio(
    own_P: NDArray[np.float64],
    own_S_P: NDArray[np.float64],
    base_P: NDArray[np.float64],
    base_S_P: NDArray[np.float64],
) -> float:
    base = base_S_P.mean(axis=0)
    wanted = float(base[-1])
    needed = budget_to_reach(base_P, base, wanted)
    return budget_to_reach(own_P, own_S_P.mean(axis=0), wanted) / needed if needed else math.nan


def _over_seeds(seeds: int, figure: Any) -> Spread:
    value = figure(np.arange(seeds))
    if seeds == 1:
        return Spread(value, None, None)
    random = np.random.default_rng(0)
    drawn = np.sort([figure(random.integers(seeds, size=seeds)) for _ in range(RESAMPLES)])
    # Not quantile(): it would interpolate between a number and infinity.
    return Spread(value, float(drawn[int(0.025 * RESAMPLES)]), float(drawn[int(0.975 * RESAMPLES) - 1]))
