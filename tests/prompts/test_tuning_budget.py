"""The ledger: whatever is asked for in whatever order, its limits hold, and what is put aside stays there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie_trainers.prompts.budget import Ledger, Room, Usage
from coterie_trainers.prompts.config import Budget
from coterie_trainers.prompts.study import BudgetSpentError

steps = st.lists(st.tuples(st.sampled_from(["ask", "begin", "end", "reflect"]), st.integers(1, 9)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(steps=steps, rollouts=st.integers(1, 40), calls=st.integers(1, 60), kept=st.integers(0, 10))
def test_limits_hold_whatever_is_asked_for(steps: list[tuple[str, int]], rollouts: int, calls: int, kept: int) -> None:
    ledger = Ledger(Budget(rollouts=rollouts, calls=calls))
    ledger.keep(kept)
    promised, in_flight, dearest, asking = 0, 0, 0, 0
    for what, number in steps:
        if what == "ask":
            try:
                ledger.take_rollouts(number)
                promised += number
            except BudgetSpentError:
                pass
        elif what == "begin" and promised and ledger.room() is Room.FREE:
            ledger.begin()
            promised, in_flight = promised - 1, in_flight + 1
        elif what == "end" and in_flight:
            ledger.end(Usage(calls=number))
            in_flight, dearest = in_flight - 1, max(dearest, number)
        elif what == "reflect":
            try:
                ledger.take_reflection()
            except BudgetSpentError:
                continue
            asking += 1
            ledger.reflected(Usage(calls=1))
    assert ledger.rollouts <= max(0, rollouts - kept)
    assert ledger.spent.calls == ledger.team.calls + asking
    if ledger.room() is Room.HOLD:
        assert in_flight


@settings(max_examples=100, deadline=None)
@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=80), limit=st.integers(1, 100), at_once=st.integers(1, 5))
def test_calls_exceed_their_limit_by_no_more_than_what_was_in_flight(
    costs: list[int], limit: int, at_once: int
) -> None:
    ledger = Ledger(Budget(calls=limit))
    flying: list[int] = []
    for cost in costs:
        if len(flying) == at_once or ledger.room() is Room.HOLD:
            ledger.end(Usage(calls=flying.pop(0)))
        if ledger.room() is not Room.FREE:
            break
        ledger.begin()
        flying.append(cost)
    before = ledger.spent.calls
    for cost in flying:
        ledger.end(Usage(calls=cost))
    assert before < limit + 9 * at_once
    assert ledger.spent.calls <= limit + 9 * at_once


def test_what_is_put_aside_is_told() -> None:
    ledger = Ledger(Budget(rollouts=10))
    ledger.keep(8)
    with pytest.raises(BudgetSpentError, match="3 rollouts are wanted, 2 are left of 10; 8 rollouts are put aside"):
        ledger.take_rollouts(3)
    ledger.take_rollouts(2)
    ledger.keep(0)
    ledger.take_rollouts(8)
    with pytest.raises(BudgetSpentError):
        ledger.take_rollouts(1)


def test_time_counts_over_all_processes() -> None:
    ledger = Ledger(Budget(seconds=100), seconds_before=99.99)
    ledger.check()
    with pytest.raises(BudgetSpentError, match="seconds are spent"):
        Ledger(Budget(seconds=100), seconds_before=101).check()
