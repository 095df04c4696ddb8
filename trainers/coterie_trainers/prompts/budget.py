"""The budget of a run: what it may spend, what it has spent, and what is put aside for measuring its result.

Rollouts are counted before they begin, so that their limit holds exactly. What a rollout costs in calls, tokens and money is
known when it has ended: one begins only if the limit holds with the mean cost of those so far for each that is in flight. So
these limits are exceeded by no more than what the rollouts in flight cost above the mean.

Everything is counted in the order in which the optimiser asks for it, also what a resumed run finds in the store: an optimiser
that asks for the same again gets the same and is stopped at the same point.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum, auto

from coterie_trainers.prompts.config import Budget
from coterie_trainers.prompts.study import BudgetSpentError


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls have cost."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0
    """Of the calls whose model has a price."""

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class Room(Enum):
    """Whether another rollout may begin."""

    FREE = auto()
    """It may."""
    HOLD = auto()
    """Not before those in flight have shown what they cost."""
    SPENT = auto()
    """It may not."""


class Ledger:
    """What one run has spent, against its budget."""

    def __init__(self, budget: Budget, *, seconds_before: float = 0.0) -> None:
        """``seconds_before`` is what earlier processes worked on the run."""
        self.budget = budget
        self.rollouts = 0
        """Begun, or promised to whoever asked."""
        self.team = Usage()
        self.reflecting = Usage()
        self.ended = 0
        """Rollouts behind ``team``."""
        self.reflections = 0
        """Questions behind ``reflecting``; one that was tried again is several calls."""
        self._seconds_before = seconds_before
        self._began = time.monotonic()
        self._kept = 0
        self._in_flight = 0
        self._asking = 0

    @property
    def seconds(self) -> float:
        """Time that the run has taken, over all its processes."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def spent(self) -> Usage:
        """The team's and the reflecting model's together."""
        return self.team + self.reflecting

    def keep(self, rollouts: int) -> None:
        """Put so many rollouts aside: what is asked for from now on must leave enough for them."""
        self._kept = rollouts

    def take_rollouts(self, count: int) -> None:
        """Promise rollouts.

        Raises:
            BudgetSpentError: the budget is not enough for all of them; none is promised.
        """
        limit = self.budget.rollouts
        if limit is not None and self.rollouts + count > limit - self._kept:
            left = max(0, limit - self._kept - self.rollouts)
            raise BudgetSpentError(f"{count} rollouts are wanted, {left} are left of {limit}{self._aside()}.")
        if count:
            self.check()
        self.rollouts += count

    def give_back(self, count: int) -> None:
        """Take back promises of rollouts that never began."""
        self.rollouts -= count

    def begin(self) -> None:
        """A promised rollout begins."""
        self._in_flight += 1

    def end(self, usage: Usage, *, was_in_flight: bool = True) -> None:
        """A promised rollout has ended, at this cost."""
        self._in_flight -= was_in_flight
        self.ended += 1
        self.team = self.team + usage

    def room(self) -> Room:
        """Whether another promised rollout may begin now."""
        if self._over(self._in_flight + 1) is None:
            return Room.FREE
        return Room.HOLD if self._in_flight else Room.SPENT

    def why_full(self) -> str:
        """Why no other rollout may begin."""
        return self._over(1) or "The next rollout would exceed the budget."

    def check(self) -> None:
        """Go on if there is something left.

        Raises:
            BudgetSpentError: says of what there is nothing left.
        """
        if said := self._over(0):
            raise BudgetSpentError(said)

    def take_reflection(self) -> None:
        """Begin a call of the reflecting model.

        Raises:
            BudgetSpentError: there is nothing left for it.
        """
        if said := self._over(0, reflections=1):
            raise BudgetSpentError(said)
        self._asking += 1

    def reflected(self, usage: Usage, *, was_asking: bool = True) -> None:
        """A call of the reflecting model has ended, at this cost."""
        self._asking -= was_asking
        self.reflections += usage.calls > 0
        self.reflecting = self.reflecting + usage

    def figures(self) -> Mapping[str, float]:
        """What was spent, for the store and the report."""
        spent = self.spent
        return {
            "rollouts": self.rollouts,
            "calls": spent.calls,
            "reflections": self.reflections,
            "input_tokens": spent.input_tokens,
            "output_tokens": spent.output_tokens,
            "money": spent.money,
            "seconds": self.seconds,
        }

    def _over(self, more: int, reflections: int = 0) -> str | None:
        """What would be spent if so many more rollouts and reflections ended; None if it is within all limits."""
        spent, limits = self.spent, self.budget
        asked = self._asking + reflections
        for name, limit, used, of_rollout, of_reflection in (
            (
                "LLM calls",
                limits.calls,
                spent.calls,
                self._mean(self.team.calls),
                self._mean_asked(self.reflecting.calls),
            ),
            (
                "tokens",
                limits.tokens,
                spent.tokens,
                self._mean(self.team.tokens),
                self._mean_asked(self.reflecting.tokens),
            ),
            ("money", limits.money, spent.money, self._mean(self.team.money), self._mean_asked(self.reflecting.money)),
        ):
            aside = self._kept * of_rollout
            if limit is not None and (
                used >= limit or used + aside + more * of_rollout + asked * of_reflection > limit
            ):
                return f"{used:.6g} of {limit:g} {name} are spent, and what comes next would exceed that{self._aside(aside)}."
        # What is in flight goes on at the same time; only what is put aside takes more.
        seconds, aside = self.seconds, self._kept * self._mean(self.seconds)
        if limits.seconds is not None and seconds + aside >= limits.seconds:
            return f"{seconds:.6g} of {limits.seconds:g} seconds are spent{self._aside(aside)}."
        return None

    def _mean(self, total: float) -> float:
        return total / self.ended if self.ended else 0.0

    def _mean_asked(self, total: float) -> float:
        return total / self.reflections if self.reflections else 0.0

    def _aside(self, amount: float | None = None) -> str:
        about = "" if amount is None else f" (about {amount:.3g})"
        return f"; {self._kept} rollouts{about} are put aside for measuring the result" if self._kept else ""


def told(figures: Mapping[str, float]) -> str:
    """What was spent, as a line."""
    tokens = figures["input_tokens"] + figures["output_tokens"]
    cost = f", {figures['money']:.4g} of money" if figures["money"] else ""
    return (
        f"{figures['rollouts']:.0f} rollouts, {figures['calls']:.0f} LLM calls ({figures['reflections']:.0f} reflections), "
        f"{tokens:.0f} tokens{cost}, {figures['seconds']:.1f} s"
    )
