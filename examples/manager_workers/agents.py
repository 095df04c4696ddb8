"""The team: a travel agency's manager and its four workers, in plain Python with the OpenAI SDK.

              ┌─brief─▶ flights ─query─▶ search ─┐
    manager ──┼─brief─▶ hotels  ─query─▶ search ─┼─names─▶ manager ──▶ offer
     (split)  ├─brief─▶ events  ─query─▶ search ─┤          (join)
              └─brief─▶ cars    ─query─▶ search ─┘

The workers run side by side. One that finds nothing tries once more. Of Coterie there are only the blocks that say who acts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from briefs import SLOTS, briefs_of
from catalogue import Row, search
from openai import AsyncOpenAI

import coterie

client = AsyncOpenAI()

SPLIT = "Split the trip."
WORK = {worker: f"Find one of the {worker}." for worker in SLOTS}
JOIN = "Make the offer."

TRIES = 2
"""How often a worker may ask the catalogue."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one worker did."""

    brief: str
    queries: list[str] = field(default_factory=list)
    found: Row | None = None


@dataclass(frozen=True, slots=True)
class Trip:
    """What the team made of a request."""

    works: dict[str, Work]
    """Worker → what it did, in the manager's order."""
    offer: str


@coterie.agent("manager")
async def plan(request: str) -> Trip:
    """Split a request, have its parts done side by side, and make an offer of what was found."""
    briefs = briefs_of(await ask(SPLIT, request))
    works = await asyncio.gather(*(work(worker, brief) for worker, brief in briefs.items()))
    found = [f"{worker} {name_of(done)}" for worker, done in zip(briefs, works, strict=True)]
    offer = await ask(JOIN, " ; ".join(found) or "nothing")
    return Trip(dict(zip(briefs, works, strict=True)), offer)


async def work(worker: str, brief: str) -> Work:
    """Find what a brief asks for."""
    queries: list[str] = []
    found = None
    with coterie.agent(worker):
        while found is None and len(queries) < TRIES:
            failed = [f"nothing : {query}" for query in queries]
            queries.append(await ask(WORK[worker], "\n".join([brief, *failed])))
            found = search(worker, queries[-1])
    return Work(brief, queries, found)


async def ask(system: str, user: str) -> str:
    """One call of the model."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    reply = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=64)  # type: ignore[arg-type]
    return (reply.choices[0].message.content or "").strip()


def name_of(work: Work) -> str:
    """What a worker reports: the name of what it found."""
    return f"'{work.found.name}'" if work.found else "nothing"
