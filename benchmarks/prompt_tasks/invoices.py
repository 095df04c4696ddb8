"""Invoices: each lesson is found only from the failures of its own role.

A reader takes an invoice down, a booker works out when it is due, a writer writes the line of the ledger. The reader copies
dates as they stand; where they stand day first the booker reads them month first, and it is the booker's result that looks
wrong. The writer puts a comma into thousands, which the ledger refuses.
"""

from __future__ import annotations

import datetime
import random

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task
from prompt_tasks.planted import Lesson, PlantedTask, Prompt, Suspicion, ask, client_of, drawn, line_of

PROMPTS = {
    "reader": "You are the reader of an invoice desk. Write down supplier, date, amount and days, each on its own line.",
    "booker": "You are the booker of an invoice desk. Work out the day on which the invoice is due.",
    "writer": "You are the writer of an invoice desk. Write the ledger's line: supplier, due day and amount.",
}
DATES = Lesson(
    "reader", "Write every date as year-month-day; suppliers write the day first.", shown=r"date: \d{4}-\d\d-\d\d"
)
AMOUNTS = Lesson("writer", "Write amounts without a comma between thousands.")
CURRENCY, WEEKENDS, RECOUNT, SHORT = (
    "Ask which currency is meant before anything else.",
    "Move a due day that falls on a weekend to the Monday after it.",
    "Count the days a second time before you answer.",
    "Leave out the supplier, to keep the line short.",
)
SUPPLIERS = ("Nordwind", "Halvorsen", "Brandt & Co", "Petit Frères", "Ödman", "Castro")


def answer(role: str, prompt: Prompt, told: str) -> str:
    """What each agent does under its prompt."""
    if role == "reader":
        if prompt.holds(CURRENCY):
            return "Which currency is meant?"
        words = dict(part.split("=", 1) for part in told.strip().split("; "))
        date = _day_first(words["date"]).isoformat() if prompt.holds(DATES) else words["date"]
        return (
            f"supplier: {words['from']}\ndate: {date}\namount: {words['amount']}\ndays: {words['days']}\n"
            "Note: the invoice names no currency."
        )
    if role == "booker":
        date, days = line_of(told, "date"), line_of(told, "days")
        due = _due(_month_first(date), int(days)) if days else None
        if due is None:
            return f"due: unknown\nNote: {date or 'nothing'} is no day that I know."
        if prompt.holds(WEEKENDS):
            due += datetime.timedelta(days=(7 - due.weekday()) % 7 if due.weekday() > 4 else 0)
        return f"due: {due.isoformat()}\nNote: I did not look at weekends."
    amount = float(line_of(told, "amount") or 0)
    figure = f"{amount:.2f}" if prompt.holds(AMOUNTS) else f"{amount:,.2f}"
    supplier = "" if prompt.holds(SHORT) else line_of(told, "supplier")
    return f"{supplier} | {line_of(told, 'due')} | {figure}\nNote: the line is rather long."


def team(base_url: str) -> RolloutFunction[..., object]:
    """The invoice desk."""
    client = client_of(base_url)

    @coterie.rollout
    async def desk(task: Task) -> float:
        read = await ask(client, "reader", PROMPTS["reader"], task.input)
        booked = await ask(client, "booker", PROMPTS["booker"], read)
        written = await ask(client, "writer", PROMPTS["writer"], read, booked)
        right = task.reference
        date, due = line_of(read, "date"), line_of(booked, "due")
        supplier, _, rest = written.partition("\n")[0].partition(" | ")
        figure = rest.partition(" | ")[2]
        _judge("reader", date == right["date"], f"The date {date!r} is not as the ledger has it, {right['date']}.")
        _judge("booker", due == right["due"], f"The due day {due!r} is wrong, the ledger has {right['due']}.")
        fits = figure == right["amount"]
        _judge("writer", fits and supplier == right["supplier"], f"The ledger refuses the amount {figure!r}.")
        return float(due == right["due"] and fits and supplier == right["supplier"])

    return desk


def _judge(role: str, good: bool, wrong: str) -> None:
    coterie.reward(float(good), name="checked", role=role, explanation=None if good else wrong)


def _make(dice: random.Random, _split: str, number: int) -> tuple[JSON, JSON]:
    # A day after the twelfth has no month: half of the dates that stand day first are refused, half misread.
    date = datetime.date(2026, dice.randint(1, 12), dice.choice((dice.randint(1, 12), dice.randint(13, 28))))
    if date.day == date.month:
        date += datetime.timedelta(days=1)
    written = date.isoformat() if number % 5 in (0, 3) else date.strftime("%d/%m/%Y")
    amount = dice.randint(1_000, 9_999) if number % 2 else dice.randint(20, 999)
    supplier, days = dice.choice(SUPPLIERS), dice.choice((10, 14, 30))
    right = {
        "supplier": supplier,
        "date": date.isoformat(),
        "due": (date + datetime.timedelta(days=days)).isoformat(),
        "amount": f"{amount:.2f}",
    }
    return f"from={supplier}; date={written}; amount={amount:.2f}; days={days}", right


def _day_first(text: str) -> datetime.date:
    if "/" not in text:
        return datetime.date.fromisoformat(text)
    day, month, year = map(int, text.split("/"))
    return datetime.date(year, month, day)


def _month_first(text: str) -> datetime.date | None:
    try:
        if "/" not in text:
            return datetime.date.fromisoformat(text)
        month, day, year = map(int, text.split("/"))
        return datetime.date(year, month, day)
    except ValueError:
        return None


def _due(date: datetime.date | None, days: int) -> datetime.date | None:
    return None if date is None else date + datetime.timedelta(days=days)


INVOICES = PlantedTask(
    name="invoices",
    asks="each lesson is found only from the right role's failures; the symptom of one shows at another role",
    prompts=PROMPTS,
    lessons=(DATES, AMOUNTS),
    suspicions=(
        Suspicion(r"is not as the ledger has it", "reader", DATES.text),
        Suspicion(r"The ledger refuses the amount", "writer", AMOUNTS.text),
        Suspicion(r"the invoice names no currency", "reader", CURRENCY),
        Suspicion(r"I did not look at weekends", "booker", WEEKENDS),
        Suspicion(r"is wrong, the ledger has|is no day that I know", "booker", RECOUNT),
        Suspicion(r"the line is rather long", "writer", SHORT),
    ),
    answer=answer,
    team=team,
    tasks=drawn("invoices", _make),
)
