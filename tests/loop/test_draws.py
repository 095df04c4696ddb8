from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.draws import draw_tasks

TASKS = [Task(f"t{n}", n, metadata={"family": f"f{n % 4}" if n < 20 else "rare"}) for n in range(22)]


def test_the_same_seed_and_step_draw_the_same_tasks_and_others_differ():
    first = draw_tasks(TASKS, count=8, seed=1, step=3)
    assert draw_tasks(TASKS, count=8, seed=1, step=3) == first
    assert draw_tasks(TASKS, count=8, seed=1, step=4) != first
    assert draw_tasks(TASKS, count=8, seed=2, step=3) != first


@given(count=st.integers(1, 30), step=st.integers(0, 50))
def test_balanced_draws_are_distinct_and_take_turns(count: int, step: int):
    drawn = draw_tasks(TASKS, count=count, seed=0, step=step, balance="family")
    assert len({task.id for task in drawn}) == len(drawn) == min(count, len(TASKS))
    counts = Counter(task.metadata["family"] for task in drawn)
    most = max(counts.values())
    sizes = Counter(task.metadata["family"] for task in TASKS)
    assert all(counts[family] >= min(most - 1, size) for family, size in sizes.items())


def test_a_task_without_the_balanced_key_is_named():
    with pytest.raises(ConfigError, match=r"'odd'.*'family'"):
        draw_tasks([Task("odd", 1)], count=1, seed=0, step=0, balance="family")
