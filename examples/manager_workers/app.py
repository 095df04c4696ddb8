"""The team as Coterie runs it: one request in, its rewards out, each bound to what it is for."""

from __future__ import annotations

from agents import plan
from judge import judge

import coterie


@coterie.rollout
async def team(task: coterie.Task) -> float:
    """Plan one trip, and say how well the team did and each agent in it."""
    trip = await plan(task.input["request"])
    verdict = judge(task.reference["briefs"], trip)
    first, *_, last = [call for call in coterie.calls() if call.role == "manager"]
    coterie.reward(verdict.split, call_id=first.call_id)
    coterie.reward(verdict.offer, call_id=last.call_id)
    for worker, value in verdict.workers.items():
        coterie.reward(value, agent_path=f"manager/{worker}")
    return verdict.team
