"""Orders: two roles must change together.

A clerk notes what a customer wants, a dispatcher writes the order, a packer packs. A dispatcher that writes a JSON object a
line and a packer that takes the order line by line get any order right; one of the two alone gains nothing for the team,
whose orders of a single thing go well in any case.
"""

from __future__ import annotations

import json
import random

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task
from prompt_tasks.planted import Lesson, PlantedTask, Prompt, Suspicion, ask, client_of, drawn, line_of

PROMPTS = {
    "clerk": "You are the clerk of a warehouse. Note what the customer wants.",
    "dispatcher": "You are the dispatcher of a warehouse. Write the order for the packer.",
    "packer": "You are the packer of a warehouse. Pack the order and say what is in the box.",
}
WRITES = Lesson("dispatcher", "Write the order as JSON, one object with count and thing on each line.")
READS = Lesson("packer", "Take the order line by line as JSON and pack every line.")
DELIVERY, STAMP, ONE_BOX = (
    "Ask for the day of delivery first.",
    "Wish the packer a good day.",
    "Never put more than one thing into a box.",
)
THINGS = ("lamp", "chair", "rug", "vase", "shelf", "mirror", "stool")


def answer(role: str, prompt: Prompt, told: str) -> str:
    """What each agent does under its prompt."""
    if role == "clerk":
        if prompt.holds(DELIVERY):
            return "On which day shall it be delivered?"
        return f"wanted: {told.strip().removeprefix('Please send ').rstrip('.')}\nNote: no day of delivery is named."
    if role == "dispatcher":
        wanted = [part.split(" ") for part in line_of(told, "wanted").split(" and ") if part]
        if prompt.holds(WRITES):
            order = "\n".join(json.dumps({"count": int(count), "thing": thing}) for count, thing in wanted)
        else:
            order = "Please pack " + " and ".join(f"{count} {thing}" for count, thing in wanted) + "."
        return f"{order}\nNote: the packer gets no greeting."
    lines = told.strip().splitlines()
    packed = [_taken(line) for line in lines if line.startswith("{")] or [_taken(line) for line in lines[:1]]
    whole = len(packed) if prompt.holds(READS) and not prompt.holds(ONE_BOX) else 1
    return f"packed: {', '.join(packed[:whole])}\nNote: the box is rather full."


def _taken(line: str) -> str:
    """The first thing on a line, whichever way it is written."""
    if line.startswith("{"):
        item = json.loads(line)
        return f"{item['count']} {item['thing']}"
    return line.removeprefix("Please pack ").partition(" and ")[0].rstrip(".")


def team(base_url: str) -> RolloutFunction[..., object]:
    """The warehouse."""
    client = client_of(base_url)

    @coterie.rollout
    async def warehouse(task: Task) -> float:
        noted = await ask(client, "clerk", PROMPTS["clerk"], task.input)
        order = await ask(client, "dispatcher", PROMPTS["dispatcher"], noted)
        box = await ask(client, "packer", PROMPTS["packer"], order)
        packed, wanted = line_of(box, "packed").split(", "), task.reference
        good = packed == wanted
        readable = sum(line.startswith("{") for line in order.splitlines())
        written = good or readable == len(wanted)
        coterie.reward(
            float(written),
            name="checked",
            role="dispatcher",
            explanation=None if written else f"{len(wanted)} things in one sentence: the scanner knows JSON lines.",
        )
        coterie.reward(
            float(good),
            name="checked",
            role="packer",
            explanation=None if good else f"{len(packed)} of {len(wanted)} lines of the order were packed.",
        )
        return float(good)

    return warehouse


def _make(dice: random.Random, _split: str, number: int) -> tuple[JSON, JSON]:
    count = 1 if number % 3 == 0 else dice.randint(2, 4)
    wanted = [f"{dice.randint(1, 9)} {thing}" for thing in dice.sample(THINGS, count)]
    return f"Please send {' and '.join(wanted)}.", wanted


ORDERS = PlantedTask(
    name="orders",
    asks="two roles must change together: one alone gains the team nothing",
    prompts=PROMPTS,
    lessons=(WRITES, READS),
    suspicions=(
        Suspicion(r"the scanner knows JSON lines", "dispatcher", WRITES.text),
        Suspicion(r"lines of the order were packed", "packer", READS.text),
        Suspicion(r"no day of delivery is named", "clerk", DELIVERY),
        Suspicion(r"the packer gets no greeting", "dispatcher", STAMP),
        Suspicion(r"the box is rather full", "packer", ONE_BOX),
    ),
    answer=answer,
    team=team,
    tasks=drawn("orders", _make),
)
