"""Credits of texts against exact values: additive games with any design, interacting ones with all combinations played."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie_trainers.prompts.contrasts import Configuration, design, text_credits

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def levels_of(counts: Sequence[int]) -> list[list[str]]:
    return [[f"prompt {place} text {n}" for n in range(count)] for place, count in enumerate(counts)]


@given(sizes, st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_an_additive_game_is_found_exactly_from_any_design_that_tells(counts: list[int], tasks: int, seed: int) -> None:
    """As many rows as there are unknowns suffice, however hard each task is."""
    chance = np.random.default_rng(seed)
    levels = levels_of(counts)
    worth = {text: chance.normal(size=tasks) for texts in levels for text in texts}
    hardness = chance.normal(size=tasks) * 10
    base = tuple(texts[0] for texts in levels)
    unknown = sum(count - 1 for count in counts)
    rows = [base, *design(levels, [base], unknown, random=random.Random(seed))]
    assert len(rows) == 1 + unknown
    played = {row: (hardness + sum(worth[text] for text in row)).tolist() for row in rows}
    for place, found in enumerate(text_credits(played, base)):
        assert found.keys() == set(levels[place])
        for text, credit in found.items():
            difference = worth[text] - worth[base[place]]
            assert credit.value == pytest.approx(difference.mean(), abs=1e-6)
            assert credit.error == pytest.approx(difference.std(ddof=1) / tasks**0.5 if tasks > 1 else 0.0, abs=1e-6)


@given(sizes, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_game_is_found_exactly_when_all_combinations_were_played(counts: list[int], seed: int) -> None:
    """The credit of a text is the mean over everything that the other prompts may be, by its definition."""
    chance = np.random.default_rng(seed)
    levels = levels_of(counts)
    value = {row: float(chance.normal()) for row in product(*levels)}
    base = tuple(str(chance.choice(texts)) for texts in levels)
    for place, found in enumerate(text_credits({row: [one] for row, one in value.items()}, base)):
        for text, credit in found.items():
            with_it = fmean(one for row, one in value.items() if row[place] == text)
            with_base = fmean(one for row, one in value.items() if row[place] == base[place])
            assert credit.value == pytest.approx(with_it - with_base, abs=1e-9)


def test_what_two_must_learn_together_is_owed_to_both_and_not_to_the_bystander() -> None:
    levels = levels_of([2, 2, 2])

    def both(row: Configuration) -> list[float]:
        return [float(row[0] == levels[0][1] and row[1] == levels[1][1])] * 4

    base = tuple(texts[0] for texts in levels)
    first, second, bystander = text_credits({row: both(row) for row in product(*levels)}, base)
    assert first[levels[0][1]].value == pytest.approx(0.5)
    assert second[levels[1][1]].value == pytest.approx(0.5)
    assert bystander[levels[2][1]].value == pytest.approx(0.0, abs=1e-9)
    assert first[levels[0][1]].played == 4


def test_the_error_is_what_credits_vary_by() -> None:
    """Of many draws of tasks, two standard errors hold the truth in nine of ten, and not always."""
    levels = levels_of([3, 2])
    chance = np.random.default_rng(0)
    held = []
    for _ in range(150):
        effect = chance.normal(0.2, 0.5, 12)
        played = {
            row: (chance.normal(0, 0.2, 12) + effect * (row[0] == levels[0][1])).tolist() for row in product(*levels)
        }
        credit = text_credits(played, (levels[0][0], levels[1][0]))[0][levels[0][1]]
        held.append(abs(credit.value - 0.2) < 2 * credit.error)
    assert 0.85 < fmean(held) < 0.99


def test_a_mixed_design_is_surer_than_one_change_at_a_time() -> None:
    """Eight rows for seven texts of seven prompts: the variance is half of that of changing one at a time, or better."""
    levels = levels_of([2] * 7)
    base = tuple(texts[0] for texts in levels)
    mixed = [base, *design(levels, [base], 7, random=random.Random(1))]
    single = [base, *(tuple(levels[at][at == place] for at in range(7)) for place in range(7))]

    def spread(rows: Sequence[Configuration]) -> float:
        chance = np.random.default_rng(2)
        found = []
        for _ in range(150):
            worth = text_credits({row: [float(chance.normal())] for row in rows}, base)
            found += [worth[place][levels[place][1]].value for place in range(7)]
        return float(np.var(found))

    assert spread(mixed) < 0.6 * spread(single)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_design_plays_nothing_twice_and_all_that_is_left_when_there_is_room(
    counts: list[int], count: int, seed: int
) -> None:
    levels = levels_of(counts)
    everything = list(product(*levels))
    played = everything[::3]
    first = everything[:2]
    rows = design(levels, played, count, first=first, random=random.Random(seed))
    assert len(set(rows)) == len(rows) == min(count, len(everything) - len(played))
    assert not set(rows) & set(played)
    wanted = [row for row in first if row not in played]
    assert rows[: min(len(wanted), count)] == wanted[:count]
    assert rows == design(levels, played, count, first=first, random=random.Random(seed))


def test_of_very_many_combinations_some_are_looked_at() -> None:
    levels = levels_of([6] * 8)
    base = tuple(texts[0] for texts in levels)
    rows = design(levels, [base], 8, random=random.Random(0))
    assert len(set(rows)) == 8
