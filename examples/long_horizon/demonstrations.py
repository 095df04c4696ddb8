"""Demonstrations for the warm start: shifts of careless people, on training orders only.

The planner forgets to have things wrapped, or sends too soon; the executor takes the wrong way, packs without wrapping,
sticks the wrong label on. Whoever comes to a state by a mistake goes on from it, so the model sees how to recover where
that is possible.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from agents import ACT, MOST_GOALS, MOST_STEPS, PLAN, step_view
from goals import Goal
from orders import Shift
from warehouse import AISLE_OF, FRAGILE, LABELS, PLACES, STOCK, Order, Warehouse

from coterie_trainers.demonstration import Demonstration

UNWRAPPED = 0.7
"""How often the planner forgets that something breaks."""
WRONG_GOAL = 0.08
WRONG_WAY = 0.12
"""How often the executor goes somewhere else, or takes something else."""
PACKED_AS_IT_IS = 0.4
WRONG_LABEL = 0.12


def demonstrate(shifts: Sequence[Shift], runs: int, seed: int) -> Iterator[Demonstration]:
    """So many shifts: each call and its answer."""
    rng = random.Random(seed)
    for number in range(runs):
        shift = shifts[number % len(shifts)]
        warehouse = Warehouse()
        for _ in range(MOST_GOALS):
            goal = _hasty_goal(shift.order, warehouse, rng)
            yield Demonstration(PLAN, shift.order.seen(warehouse), str(goal))
            packed = len(warehouse.box)
            for _ in range(MOST_STEPS):
                action = _hasty_step(goal, warehouse, rng)
                yield Demonstration(ACT, step_view(str(goal), warehouse), action)
                warehouse.do(action)
                if goal.over(warehouse, packed):
                    break
            if warehouse.shipped:
                break


def next_goal(order: Order, warehouse: Warehouse) -> Goal:
    """The right sub-goal: the first item that is not in the box, then to send it."""
    packed = {item for item, _ in warehouse.box}
    missing = [(item, wrapped) for item, wrapped in order.box.items() if item not in packed]
    return Goal("pack", *missing[0]) if missing else Goal("send", order.label)


def next_step(goal: Goal, warehouse: Warehouse) -> str:
    """The right step towards a sub-goal."""
    if goal.verb == "send":
        if warehouse.label != goal.what:
            return f"label {goal.what}" if warehouse.at == "bench" else "go bench"
        return "ship" if warehouse.at == "dock" else "go dock"
    if warehouse.hold == goal.what:
        if warehouse.at != "bench":
            return "go bench"
        return f"wrap {goal.what}" if goal.wrapped and not warehouse.wrapped else f"pack {goal.what}"
    aisle = AISLE_OF[goal.what]
    return f"take {goal.what}" if aisle == warehouse.at else f"go {aisle}"


def _hasty_goal(order: Order, warehouse: Warehouse, rng: random.Random) -> Goal:
    goal = next_goal(order, warehouse)
    if goal.verb == "pack":
        if goal.what in FRAGILE and not order.items[goal.what] and rng.random() < UNWRAPPED:
            return Goal("pack", goal.what)
        if rng.random() < WRONG_GOAL:
            return Goal("send", order.label) if warehouse.box else Goal("pack", goal.what, not goal.wrapped)
    elif rng.random() < WRONG_GOAL:
        return Goal("send", _other_label(goal.what))
    return goal


def _hasty_step(goal: Goal, warehouse: Warehouse, rng: random.Random) -> str:
    verb, _, thing = next_step(goal, warehouse).partition(" ")
    match verb:
        case "go" if rng.random() < WRONG_WAY:
            return f"go {rng.choice([place for place in PLACES if place != warehouse.at])}"
        case "take" if rng.random() < WRONG_WAY:
            thing = rng.choice(STOCK[warehouse.at])
        case "wrap" if rng.random() < PACKED_AS_IT_IS:
            verb = "pack"
        case "label" if rng.random() < WRONG_LABEL:
            thing = _other_label(thing)
    return f"{verb} {thing}".strip()


def _other_label(label: str) -> str:
    return next(other for other in LABELS if other != label)
