"""Tickets: one lesson is misleading on train and wrong on validation.

A triager sends a customer's ticket to a queue, an answerer replies. The triager goes by the first sentence, though the last
one says what is wanted. Among the training tickets most of those that go wrong mention a refund and belong to billing; among
the others, tickets that mention a refund mostly belong elsewhere.
"""

from __future__ import annotations

import random

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task
from prompt_tasks.planted import Lesson, PlantedTask, Prompt, Suspicion, ask, client_of, drawn, line_of

PROMPTS = {
    "triager": "You are the triager of a help desk. Send the ticket to billing, shipping or security.",
    "answerer": "You are the answerer of a help desk. Write the reply to the customer.",
}
LAST = Lesson("triager", "Decide by the last sentence, which says what the customer wants.")
GOLD = Lesson("answerer", "Promise gold customers a solution within a day.")
REFUND, NAME, LENGTH = (
    "Send every ticket that mentions a refund to billing.",
    "Ask for the customer's name before anything else.",
    "Keep the reply short.",
)
OPENINGS = {
    "billing": "I looked at my bill.",
    "shipping": "The parcel came on Monday.",
    "security": "I looked into my account.",
}
WISHES = {
    "billing": "Please correct the sum.",
    "shipping": "Please send another one.",
    "security": "Please lock everything.",
}


def answer(role: str, prompt: Prompt, told: str) -> str:
    """What each agent does under its prompt."""
    if role == "triager":
        queue = next(queue for queue, opening in OPENINGS.items() if opening in told)
        if prompt.holds(LAST):
            queue = next(queue for queue, wish in WISHES.items() if wish in told)
        if prompt.holds(REFUND) and "refund" in told:
            queue = "billing"
        return f"queue: {queue}\nNote: the ticket is not dated."
    if prompt.holds(NAME):
        return "What is your name?"
    promise = "within a day" if "Gold customer" in told and prompt.holds(GOLD) else "soon"
    return f"reply: {line_of(told, 'queue')} will solve it {promise}.\nNote: the customer's name is not known."


def team(base_url: str) -> RolloutFunction[..., object]:
    """The help desk."""
    client = client_of(base_url)

    @coterie.rollout
    async def desk(task: Task) -> float:
        triaged = await ask(client, "triager", PROMPTS["triager"], task.input)
        replied = await ask(client, "answerer", PROMPTS["answerer"], task.input, triaged)
        right, queue = task.reference, line_of(triaged, "queue")
        why = "it mentions a refund" if "refund" in task.input else f"the last sentence says: {WISHES[right['queue']]}"
        sent = queue == right["queue"]
        coterie.reward(
            float(sent),
            name="checked",
            role="triager",
            explanation=None if sent else f"Belongs to {right['queue']}, for {why}",
        )
        promised = ("within a day" in replied) == right["gold"] and line_of(replied, "reply") != ""
        coterie.reward(
            float(promised),
            name="checked",
            role="answerer",
            explanation=None if promised else "A gold customer was not promised a solution within a day.",
        )
        return float(sent and promised)

    return desk


def _make(dice: random.Random, split: str, number: int) -> tuple[JSON, JSON]:
    queues = list(OPENINGS)
    refund = number % 2 == 0
    if refund and split == "train":
        queue, opening = "billing", dice.choice(("shipping", "security"))
    elif refund:
        # Here a refund says nothing, and the first sentence is mostly right.
        queue = dice.choice(("shipping", "security"))
        opening = queue if number % 4 else dice.choice([name for name in queues if name != queue])
    else:
        queue = dice.choice(queues)
        opening = queue if number % 3 else dice.choice([name for name in queues if name != queue])
    gold = number % 5 < 2
    middle = "You owe me a refund. " if refund else "I have waited long. "
    text = f"{'Gold customer. ' if gold else ''}{OPENINGS[opening]} {middle}{WISHES[queue]}"
    return text, {"queue": queue, "gold": gold}


TICKETS = PlantedTask(
    name="tickets",
    asks="one lesson is misleading on train and wrong on validation",
    prompts=PROMPTS,
    lessons=(LAST, GOLD),
    suspicions=(
        Suspicion(r"the last sentence says", "triager", LAST.text),
        Suspicion(r"for it mentions a refund", "triager", REFUND),
        Suspicion(r"gold customer was not promised", "answerer", GOLD.text),
        Suspicion(r"the ticket is not dated", "triager", LENGTH),
        Suspicion(r"the customer's name is not known", "answerer", NAME),
    ),
    answer=answer,
    team=team,
    tasks=drawn("tickets", _make),
)
