"""The truth as a reward: the team is right when its query gives the same rows as the gold query.

Each role is also judged for its own part, so that it learns what it did and not only how the team fared:

    analyst    its plan means what was asked
    coder      its queries do what the plans say that it was given
    reviewer   half for its verdict: it accepts what is right and sends back what is wrong;
               half for what comes of it: the query that it accepts, or the plan that it sends back, is right
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from database import Result, run_sql, same_result
from plans import Plan


def judge(reference: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
    """The rewards of one run of the team, each from 0 to 1.

    Args:
        reference: The task's ``sql`` (gold) and ``ordered`` (whether the question asks for an order).
        state: The graph's last state: ``plans``, ``queries`` and ``review``.
    """
    gold, ordered = run_sql(reference["sql"]), bool(reference["ordered"])

    def right(result: Result) -> bool:
        return same_result(result, gold, ordered=ordered)

    def faithful(query: str, plan: str) -> bool:
        parsed = Plan.parse(plan)
        wanted = run_sql(parsed.sql) if parsed else gold
        if wanted.rows is None:
            wanted = gold
        return same_result(run_sql(query), wanted, ordered=parsed.ordered if parsed else ordered)

    plans, queries = state["plans"], state["queries"]
    first_is_right = right(run_sql(queries[0]))
    if len(plans) == 2:
        verdict, outcome = not first_is_right, right(meaning(plans[1]))
    else:
        verdict = outcome = first_is_right and state["review"].endswith(" : ok")
    done_as_planned = [faithful(query, plan) for query, plan in zip(queries, plans, strict=True)]
    return {
        "team": float(right(run_sql(queries[-1]))),
        "analyst": float(right(meaning(plans[0]))),
        "coder": sum(done_as_planned) / len(done_as_planned),
        "reviewer": (verdict + outcome) / 2,
    }


def meaning(plan: str) -> Result:
    """What a plan would find."""
    parsed = Plan.parse(plan)
    return run_sql(parsed.sql) if parsed else Result(None, "no plan")
