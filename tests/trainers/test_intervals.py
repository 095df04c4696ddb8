"""Intervals: they hold the truth as often as they say, whole tasks are resampled, and the same input gives the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie_trainers import intervals
from coterie_trainers.intervals import difference_interval, mean_interval

tables = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]), min_size=1, max_size=4),
    min_size=1,
    max_size=8,
)


def study(chance: np.random.Generator, *, tasks: int = 40, rollouts: int = 4) -> dict[str, list[float]]:
    """Tasks that are nearly always or nearly never solved: success 0.5 overall, rollouts of a task alike."""
    return {
        str(task): (chance.random(rollouts) < chance.choice([0.05, 0.95])).astype(float).tolist()
        for task in range(tasks)
    }


def coverage(studies: list[dict[str, list[float]]], truth: float) -> float:
    found = [mean_interval(values, resamples=300) for values in studies]
    return float(np.mean([interval.low <= truth <= interval.high for interval in found]))


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    assert 0.90 <= coverage([study(chance) for _ in range(200)], 0.5) <= 0.99


def test_taking_rollouts_for_independent_would_not() -> None:
    """Why tasks are resampled: the same studies with each rollout as a task of its own miss the truth far too often."""
    chance = np.random.default_rng(0)
    flat = [
        {f"{task}.{n}": [value] for task, values in study(chance).items() for n, value in enumerate(values)}
        for _ in range(200)
    ]
    assert coverage(flat, 0.5) < 0.80


def test_the_width_is_that_of_the_central_limit() -> None:
    chance = np.random.default_rng(1)
    values = {str(task): [float(chance.normal())] for task in range(400)}
    found = mean_interval(values)
    error = np.std([value for (value,) in values.values()]) / 400**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_paired_difference_is_narrower_than_two_means_apart() -> None:
    chance = np.random.default_rng(2)
    hardness = chance.random(60)
    before = {str(task): [float(hard > 0.5)] * 2 for task, hard in enumerate(hardness)}
    after = {str(task): [float(hard > 0.4)] * 2 for task, hard in enumerate(hardness)}
    found = difference_interval(before, after)
    alone = mean_interval(after)
    assert found.value == pytest.approx(mean_interval(after).value - mean_interval(before).value)
    assert 0 <= found.low < found.value < found.high
    assert found.high - found.low < 0.8 * (alone.high - alone.low)


def test_no_change_on_any_task_has_no_width() -> None:
    values = study(np.random.default_rng(3))
    found = difference_interval(values, values)
    assert (found.value, found.low, found.high) == (0, 0, 0)


@given(values=tables, order=st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_leaves_no_trace(values: dict[str, list[float]], order) -> None:
    shuffled = list(values.items())
    order.shuffle(shuffled)
    again = {task: list(reversed(some)) for task, some in shuffled}
    assert mean_interval(again, resamples=200) == mean_interval(values, resamples=200)
    assert difference_interval(values, again, resamples=200).value == 0


@given(values=tables)
@settings(max_examples=30)
def test_the_figure_is_the_mean_of_all_rollouts_and_the_interval_lies_within_the_values(
    values: dict[str, list[float]],
) -> None:
    every = [value for some in values.values() for value in some]
    found = mean_interval(values, resamples=200)
    assert found.value == pytest.approx(np.mean(every))
    assert min(every) - 1e-12 <= found.low <= found.high <= max(every) + 1e-12
    assert (found.tasks, found.rollouts) == (len(values), len(every))


def test_the_seed_decides_and_memory_bounds_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = study(np.random.default_rng(4))
    first = mean_interval(values, seed=1, resamples=1000)
    assert mean_interval(values, seed=1, resamples=1000) == first
    assert mean_interval(values, seed=2, resamples=1000) != first
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", 90)
    assert mean_interval(values, seed=1, resamples=1000) == first


def test_a_higher_level_is_wider() -> None:
    values = study(np.random.default_rng(5))
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "settings_", "message"),
    [
        ({}, {}, "values is empty"),
        ({"a": [1.0], "b": []}, {}, "no rollout of task 'b'"),
        ({"a": [1.0, float("nan")]}, {}, "task 'a' are not all finite"),
        ({"a": [1.0]}, {"level": 95}, "level is 95"),
        ({"a": [1.0]}, {"resamples": 0}, "resamples is 0"),
    ],
)
def test_bad_input_is_an_error(values, settings_, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mean_interval(values, **settings_)


def test_a_difference_of_other_tasks_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"2 are only in one; 'b' is only in before"):
        difference_interval({"a": [1.0], "b": [1.0]}, {"a": [1.0], "c": [1.0]})
    with pytest.raises(ConfigError, match="after is empty"):
        difference_interval({"a": [1.0]}, {})
