"""The team as Coterie runs it: one order in, its rewards out."""

from __future__ import annotations

from agents import Pursuit, graph
from orders import read_order
from warehouse import Warehouse

import coterie


@coterie.rollout
async def team(task: coterie.Task) -> float:
    """Work one shift: 1 if the right box has left, else 0. The steps of each sub-goal are rewarded for reaching it."""
    order, warehouse = read_order(task.input), Warehouse()
    shift = await graph.ainvoke({"order": order, "warehouse": warehouse, "pursuits": []})
    reward_steps(shift["pursuits"])
    return float(order.fulfilled(shift["warehouse"]))


def reward_steps(pursuits: list[Pursuit]) -> None:
    """Reward the executor's calls for the sub-goals that it was given, right or wrong; the planner has the team's reward."""
    calls = iter([call for call in coterie.calls() if call.role == "executor"])
    for pursuit in pursuits:
        for _, call in zip(range(pursuit.steps), calls, strict=False):
            coterie.reward(float(pursuit.reached), call_id=call.call_id)
