"""How the rows of a gradient step are dealt to training processes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from coterie_trainers.backends.local.shares import passes_of_rank

NOTHING = 0
"""Rows are their lengths here, and this one has no trained token."""


def in_twos(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[start : start + 2] for start in range(0, len(rows), 2)]


def dealt(rows: list[int], ranks: int) -> list[list[Sequence[int]]]:
    return [passes_of_rank(rows, in_twos, lambda row: row, NOTHING, rank=rank, ranks=ranks) for rank in range(ranks)]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 9))
def test_every_row_is_dealt_once_and_all_ranks_make_as_many_passes(rows: list[int], ranks: int):
    of_ranks = dealt(rows, ranks)
    assert len({len(passes) for passes in of_ranks}) == 1
    shares = [[row for one in passes for row in one if row != NOTHING] for passes in of_ranks]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.integers(1, 500), min_size=8, max_size=60))
def test_shares_differ_by_no_more_than_the_longest_row(rows: list[int]):
    tokens = [sum(row for one in passes for row in one) for passes in dealt(rows, 2)]
    assert abs(tokens[0] - tokens[1]) <= max(rows)


def test_a_rank_without_rows_makes_its_passes_over_nothing():
    assert dealt([7], 3) == [[[7]], [[NOTHING]], [[NOTHING]]]
