"""The team: three roles write a function that is proved to be right, in plain Python with the OpenAI SDK.

    specifier ──contract──▶ coder ──program──▶ verifier ──proved──▶ done
                                                 │  ▲
                                        findings ▼  │ program
                                               repairer   at most twice

The verifier is no model: it proves the program against the specifier's contract, or gives back what does not hold and for which
values. Of Coterie there are the blocks that say who acts, and ``coterie.prompt``: each role's text as it is being tuned or
in use, and the one in ``prompts/`` where Coterie does not run.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from contracts import Contract
from expressions import ProgramError
from openai import AsyncOpenAI
from verifier import Verdict, Verifier, chosen_verifier

import coterie
from coterie.prompts.files import read_prompt_file

client = AsyncOpenAI()
"""Of ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``."""
MODEL = os.environ.get("MODEL", "gpt-4o-mini")
REPAIRS = 2
"""How often the repairer may try."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the team did for one task."""

    contract_text: str
    """What the specifier wrote."""
    contract: Contract | None
    """The contract in it, if it can be read."""
    fault: str
    """Why it cannot be read."""
    programs: tuple[str, ...]
    """The coder's, then the repairer's; the last is the team's answer."""
    verdicts: tuple[Verdict, ...]
    """Of each program against the specifier's contract; none if there is no contract."""


async def solve(signature: str, words: str, verifier: Verifier | None = None) -> Work:
    """Write a function from what somebody wants of it.

    Args:
        signature: Such as ``clamp(x, low, high)``.
        words: What it should do.
        verifier: The one that ``VERIFIER`` names by default.
    """
    verifier = verifier or chosen_verifier()
    task = f"{signature}: {words}"
    contract_text = await ask("specifier", task, verifier)
    contract, fault = read_contract(signature, contract_text)
    agreed = f"{task}\n\n{contract or contract_text}"
    programs = [await ask("coder", agreed, verifier)]
    verdicts: list[Verdict] = []
    if contract is not None:
        verdicts.append(await asyncio.to_thread(verifier.verify, programs[0], contract))
        while not verdicts[-1].proved and len(programs) <= REPAIRS:
            broken = f"{agreed}\n\n{programs[-1]}\n\nThe verifier says:\n{verdicts[-1]}"
            programs.append(await ask("repairer", broken, verifier))
            verdicts.append(await asyncio.to_thread(verifier.verify, programs[-1], contract))
    return Work(contract_text, contract, fault, tuple(programs), tuple(verdicts))


async def ask(role: str, text: str, verifier: Verifier) -> str:
    """One call of the model, as a role."""
    with coterie.agent(role):
        system = coterie.prompt(role, written_prompt(role, verifier.language))
        reply = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "system", "content": system}, {"role": "user", "content": text}]
        )
    return (reply.choices[0].message.content or "").strip()


def written_prompt(role: str, language: str) -> str:
    """A role's prompt as it stands in the folder of its language; ``prompts`` holds those that are for any."""
    here = Path(__file__).parent
    own = here / f"prompts_{language}" / f"{role}.md"
    path = own if own.exists() else here / "prompts" / f"{role}.md"
    return read_prompt_file(path, role).text


def read_contract(signature: str, text: str) -> tuple[Contract | None, str]:
    """The contract in an answer, or why there is none."""
    try:
        return Contract.parse(signature, text), ""
    except ProgramError as error:
        return None, str(error)
