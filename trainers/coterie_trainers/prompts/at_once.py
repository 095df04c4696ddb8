"""Many evaluations or reflections at once, and what is had of them when the budget ends in between."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from coterie_trainers.prompts.study import BudgetSpentError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gathered(Generic[T]):
    """What became of several things that were awaited together."""

    results: Sequence[T | None]
    """In the order in which they were asked for; None where the budget did not suffice."""
    spent: BudgetSpentError | None
    """The first refusal, in that order; None if all was paid for."""


async def at_once(awaited: Iterable[Coroutine[Any, Any, T]]) -> Gathered[T]:
    """Await all of these together. They begin in this order, and none is left running.

    Raises:
        Exception: the first, in order, that is no ``BudgetSpentError``, after all have ended.
    """
    ended = await asyncio.gather(*awaited, return_exceptions=True)
    results: list[T | None] = []
    spent: BudgetSpentError | None = None
    for each in ended:
        if isinstance(each, BudgetSpentError):
            spent = spent or each
            results.append(None)
        elif isinstance(each, BaseException):
            raise each
        else:
            results.append(each)
    return Gathered(results, spent)
