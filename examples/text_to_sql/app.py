"""The team as Coterie runs it: one task in, its rewards out."""

from __future__ import annotations

from agents import graph
from judge import judge

import coterie


@coterie.rollout
async def team(task: coterie.Task) -> dict[str, float]:
    """Answer one question, and say how well."""
    state = await graph.ainvoke({"question": task.input["question"]})
    return judge(task.reference, state)
