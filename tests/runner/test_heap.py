"""While a runner plays, the heap that was there before is not searched for garbage; then it is again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import coterie
from coterie.runner import Runner
from coterie.runner.heap import PYTHONS_OWN, heap_set_aside
from coterie.store.base import Store


@pytest.fixture(autouse=True)
def nothing_set_aside() -> Iterator[None]:
    assert gc.get_freeze_count() < PYTHONS_OWN, "another test left the heap set aside"
    yield
    gc.unfreeze()


async def test_a_runner_sets_the_heap_aside_while_it_lasts(store: Store) -> None:
    @coterie.rollout
    async def team(task: coterie.Task) -> float:
        return 1.0

    async with Runner(store, team):
        assert gc.get_freeze_count() > PYTHONS_OWN
        async with Runner(store, team):
            pass
        assert gc.get_freeze_count() > PYTHONS_OWN, "the first still plays"
    assert gc.get_freeze_count() < PYTHONS_OWN


async def test_a_runner_that_is_stopped_twice_leaves_the_heap_of_another_alone(store: Store) -> None:
    @coterie.rollout
    async def team(task: coterie.Task) -> float:
        return 1.0

    async with Runner(store, team):
        other = Runner(store, team)
        async with other:
            pass
        await other.stop()
        assert gc.get_freeze_count() > PYTHONS_OWN


def test_what_a_program_set_aside_stays_so() -> None:
    gc.freeze()
    with heap_set_aside():
        assert gc.get_freeze_count() > PYTHONS_OWN
    assert gc.get_freeze_count() > PYTHONS_OWN
