"""The team as Coterie runs it: one task in, its rewards out."""

from __future__ import annotations

import asyncio

from agents import solve
from contracts import Contract
from judge import judge
from verifier import chosen_verifier

import coterie

verifier = chosen_verifier()


@coterie.rollout
async def team(task: coterie.Task) -> None:
    """Write one function, and say what is proved of it."""
    signature, words = task.input["signature"], task.input["words"]
    work = await solve(signature, words, verifier)
    await asyncio.to_thread(judge, work, Contract.of_task(signature, task.reference), verifier)
