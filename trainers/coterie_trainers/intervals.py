"""Intervals: how sure a mean over rollouts is, when several rollouts share a task.

Rollouts of one task rise and fall together: an easy task succeeds each time. Counting them as independent makes intervals
too narrow, so whole tasks are resampled, with all their rollouts (a cluster bootstrap; why clusters matter in evaluations:
arXiv 2411.00640). For a difference of two systems on the same tasks the same draw of tasks serves both: what makes a task
easy or hard cancels, and the interval is the narrower the more they agree.

The intervals are percentile intervals (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). They say
how the figure would vary over *other tasks of the same kind*; they know nothing of the training's own randomness, which
takes several seeds. With few tasks (below about 20) they are somewhat too narrow; with one task, or when every value is
the same, they have no width, which means that nothing is known and not that all is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.errors import ConfigError

DRAWS_AT_ONCE = 2_000_000
"""Tasks drawn at a time, so that memory stays bounded (16 MB a table) however many there are."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or a difference of means, with its bootstrap interval."""

    value: float
    """The figure itself, from all rollouts."""
    low: float
    high: float
    level: float
    """The part of intervals that is meant to hold the truth, such as 0.95."""
    tasks: int
    """Tasks that were resampled."""
    rollouts: int
    """Rollouts behind the figure; for a difference, of both sides together."""


def mean_interval(
    values: Mapping[str, Sequence[float]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean over all rollouts, with a percentile interval from resampled tasks.

    The same input gives the same interval, whatever the order of tasks and of the values in a task.

    Args:
        values: Task id → one value a rollout.
        level: Between 0 and 1.
        resamples: How many bootstrap samples.
        seed: Of the resampling.

    Raises:
        ConfigError: no task, a task without a value, a value that is not finite, or a bad ``level`` or ``resamples``.
    """
    _check_settings(level, resamples)
    tasks = _tasks("values", values)
    sum_K, count_K = _totals("values", values, tasks)
    means_B = np.concatenate(
        [(draw_BK @ sum_K) / (draw_BK @ count_K) for draw_BK in _draws(len(tasks), resamples, seed)]
    )
    return _interval(sum_K.sum() / count_K.sum(), means_B, level, len(tasks), int(count_K.sum()))


def difference_interval(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of ``after`` less the mean of ``before`` on the same tasks, with a paired percentile interval.

    Args:
        before: Task id → one value a rollout.
        after: The same for the same tasks; the number of rollouts may differ.
        level: Between 0 and 1.
        resamples: How many bootstrap samples.
        seed: Of the resampling.

    Raises:
        ConfigError: as ``mean_interval``, or the tasks are not the same.
    """
    _check_settings(level, resamples)
    tasks = _tasks("before", before)
    _check_same_tasks(tasks, _tasks("after", after))
    sum_before_K, count_before_K = _totals("before", before, tasks)
    sum_after_K, count_after_K = _totals("after", after, tasks)
    differences_B = np.concatenate(
        [
            (draw_BK @ sum_after_K) / (draw_BK @ count_after_K) - (draw_BK @ sum_before_K) / (draw_BK @ count_before_K)
            for draw_BK in _draws(len(tasks), resamples, seed)
        ]
    )
    value = sum_after_K.sum() / count_after_K.sum() - sum_before_K.sum() / count_before_K.sum()
    return _interval(value, differences_B, level, len(tasks), int(count_before_K.sum() + count_after_K.sum()))


def _draws(tasks: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each task is drawn in each bootstrap sample, in tables of bounded size: ``draw_BK``."""
    random = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // tasks)
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        yield random.multinomial(tasks, np.full(tasks, 1.0 / tasks), size=some).astype(np.float64)


def _interval(value: float, bootstrap_B: NDArray[np.float64], level: float, tasks: int, rollouts: int) -> Interval:
    low, high = np.quantile(bootstrap_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level, tasks, rollouts)


def _tasks(name: str, values: Mapping[str, Sequence[float]]) -> list[str]:
    if not values:
        raise ConfigError(f"interval: {name} is empty. There must be at least one task with one rollout.")
    return sorted(values)


def _totals(
    name: str, values: Mapping[str, Sequence[float]], tasks: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum and the number of each task's values: ``sum_K``, ``count_K``."""
    for task in tasks:
        if len(values[task]) == 0:
            raise ConfigError(f"interval: {name} has no rollout of task {task!r}. Leave the task out, or measure it.")
        if not all(map(math.isfinite, values[task])):
            raise ConfigError(f"interval: {name} of task {task!r} are not all finite: {list(values[task])[:8]}.")
    # fsum is exact, so that the order of a task's values leaves no trace.
    sum_K = np.array([math.fsum(values[task]) for task in tasks])
    return sum_K, np.array([len(values[task]) for task in tasks], dtype=np.float64)


def _check_same_tasks(before: Sequence[str], after: Sequence[str]) -> None:
    apart = sorted(set(before) ^ set(after))
    if apart:
        side = "before" if apart[0] in before else "after"
        raise ConfigError(
            f"interval: before and after must be of the same tasks, but {len(apart)} are only in one; "
            f"{apart[0]!r} is only in {side}. Compare what both measured."
        )


def _check_settings(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"interval: level is {level}; it must lie between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ConfigError(f"interval: resamples is {resamples}; it must be at least 1, such as 10000.")
