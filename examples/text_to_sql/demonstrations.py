"""Demonstrations for the warm start: team runs by hasty people, made from training questions only.

A slip may happen to write the gold query of some other question; if that one is held out, the slip is left out.

They show how plans, queries and reviews look, and they are often wrong on purpose: plans misread the question, queries
lose a filter, and a reviewer judges by a plan of its own that is no better. A model that imitates them starts out poor but not hopeless, and reinforcement
learning has something to do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence, Set

from agents import ANALYST, CODER, REVIEWER
from database import run_sql, same_result
from plans import Plan
from questions import FAMILIES, Question

from coterie_trainers.demonstration import Demonstration

WRONG_PLAN = 0.45
"""How often a plan misreads its question."""
WRONG_QUERY = 0.40
"""How often a query is not what its plan says."""
PREJUDICED = frozenset(family.name for family in FAMILIES[::2])
"""Families that are misread more often, and mostly in one way: here even the most likely answer is wrong at first."""


def demonstrate(
    questions: Sequence[Question], runs: int, seed: int, *, held_out: Set[str] = frozenset()
) -> Iterator[Demonstration]:
    """So many runs of the team, every family equally often: three demonstrations each, none with a held-out query."""
    rng = random.Random(seed)
    by_family = [[question for question in questions if question.family is family] for family in FAMILIES]
    for number in range(runs):
        question = rng.choice(by_family[number % len(by_family)])
        plan = _hasty_plan(question, rng, held_out)
        query = _hasty_query(plan.sql, rng)
        if query in held_out:
            query = plan.sql
        reading = _hasty_plan(question, rng, held_out)
        agrees = same_result(run_sql(query), run_sql(reading.sql), ordered=reading.ordered)
        review = f"{reading} : {'ok' if agrees else 'fix'}"
        yield Demonstration(ANALYST, question.text, str(plan))
        yield Demonstration(CODER, f"{question.text}\n{plan}", query)
        yield Demonstration(REVIEWER, f"{question.text}\n{query}", review)


def _hasty_plan(question: Question, rng: random.Random, held_out: Set[str]) -> Plan:
    family = question.family
    prejudiced = family.name in PREJUDICED
    if rng.random() >= WRONG_PLAN + (0.15 if prejudiced else 0.0):
        return question.gold
    misread = family.misreadings[0] if prejudiced and rng.random() < 0.85 else rng.choice(family.misreadings)
    plan = misread(*(f"'{value}'" if isinstance(value, str) else str(value) for value in question.values))
    return question.gold if plan.sql in held_out else plan


def _hasty_query(sql: str, rng: random.Random) -> str:
    if rng.random() >= WRONG_QUERY:
        return sql
    slips = [slip(sql) for slip in _SLIPS]
    return rng.choice([slipped for slipped in slips if slipped != sql])


def _another_aggregate(sql: str) -> str:
    other = {"avg": "sum", "sum": "max", "max": "avg", "count": "max"}
    return re.sub(r"\b(avg|sum|max|count)\((\w+)\)", lambda found: f"{other[found[1]]}({found[2]})", sql, count=1)


_SLIPS: tuple[Callable[[str], str], ...] = (
    lambda sql: re.sub(r" AND \w+ [<>=] \S+", "", sql, count=1),
    lambda sql: re.sub(r" WHERE .*?(?= GROUP| ORDER|$)", "", sql),
    lambda sql: sql.translate(str.maketrans("<>", "><")),
    lambda sql: re.sub(r" NATURAL JOIN \w+", "", sql, count=1),
    lambda sql: re.sub(r"\b(asc|desc)\b", lambda found: "desc" if found[0] == "asc" else "asc", sql),
    lambda sql: re.sub(r" (GROUP BY \w+|LIMIT 1)$", "", sql),
    _another_aggregate,
)
