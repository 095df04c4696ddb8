"""The team: a planner that sets sub-goals and an executor that takes the steps, as a LangGraph program.

    planner ──sub-goal──▶ executor ──action──▶ warehouse
       ▲                   ▲     └──────────────┘ until the sub-goal is over
       └───────────────────┘                      and the box has left

Of Coterie there is only ``coterie.state``, which names what the agent sees, so that calls in the same situation can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from goals import Goal
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from warehouse import Order, Warehouse

import coterie

llm = ChatOpenAI(model="gpt-4o-mini", max_tokens=16)

PLAN = "Set the next goal."
ACT = "Do the next step."

MOST_GOALS = 5
"""How often the planner may set one."""
MOST_STEPS = 6
"""How many steps the executor has for one."""


@dataclass(slots=True)
class Pursuit:
    """One sub-goal and what became of it."""

    text: str
    """What the planner wrote."""
    packed_before: int
    """How many items were in the box when it was set."""
    steps: int = 0
    """The executor's calls for it."""
    reached: bool = False

    @property
    def goal(self) -> Goal | None:
        """What it means."""
        return Goal.parse(self.text)


class Shift(TypedDict):
    """What the agents share."""

    order: Order
    warehouse: Warehouse
    pursuits: list[Pursuit]


async def ask(system: str, seen: str) -> str:
    """One call of the model."""
    with coterie.state(seen):
        reply = await llm.ainvoke([("system", system), ("human", seen)])
    return reply.text.strip()


async def planner(shift: Shift) -> dict[str, Any]:
    """Set the next sub-goal."""
    warehouse = shift["warehouse"]
    text = await ask(PLAN, shift["order"].seen(warehouse))
    return {"pursuits": [*shift["pursuits"], Pursuit(text, len(warehouse.box))]}


async def executor(shift: Shift) -> dict[str, Any]:
    """Take one step towards it."""
    warehouse, pursuit = shift["warehouse"], shift["pursuits"][-1]
    warehouse.do(await ask(ACT, step_view(pursuit.text, warehouse)))
    pursuit.steps += 1
    pursuit.reached = pursuit.goal is not None and pursuit.goal.reached(warehouse, pursuit.packed_before)
    return {"warehouse": warehouse}


def after_planner(shift: Shift) -> str:
    """To the executor, unless what was written is no goal."""
    return "executor" if shift["pursuits"][-1].goal else _next_goal(shift)


def after_executor(shift: Shift) -> str:
    """Go on, or have the next goal set."""
    pursuit = shift["pursuits"][-1]
    over = pursuit.goal is None or pursuit.goal.over(shift["warehouse"], pursuit.packed_before)
    return _next_goal(shift) if over or pursuit.steps == MOST_STEPS else "executor"


def _next_goal(shift: Shift) -> str:
    done = shift["warehouse"].shipped or len(shift["pursuits"]) == MOST_GOALS
    return END if done else "planner"


def step_view(goal: str, warehouse: Warehouse) -> str:
    """What the executor sees."""
    return f"goal {goal} ; {warehouse.seen()}"


builder = StateGraph(Shift)
builder.add_node("planner", planner)
builder.add_node("executor", executor)
builder.add_edge(START, "planner")
builder.add_conditional_edges("planner", after_planner, ["planner", "executor", END])
builder.add_conditional_edges("executor", after_executor, ["planner", "executor", END])
graph = builder.compile().with_config(recursion_limit=2 + MOST_GOALS * (1 + MOST_STEPS))
