"""The team as Coterie runs it: one question in, its rewards out."""

from __future__ import annotations

from agents import graph
from judge import judge

import coterie


@coterie.rollout
async def team(task: coterie.Task) -> None:
    """Answer one question, and say how well."""
    judge(task.reference, await graph.ainvoke({"question": task.input["question"]}))
