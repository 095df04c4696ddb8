"""The rewards: what is proved, and for each role what it made of what it was given.

    team        1 if the last program keeps the contract that the task holds, which no agent sees; else 0
    specifier   half for a contract that forbids nothing that was asked for, half for one that allows nothing else
    coder       1 if its program keeps the specifier's contract, else 0
    repairer    1 if its last program does, else 0; nothing if it was not asked

Each comes with what the verifier says, counterexamples included: that is what an optimiser reads.
"""

from __future__ import annotations

from agents import Work
from contracts import Contract
from proving import compare
from verifier import Verifier

import coterie


def judge(work: Work, wanted: Contract, verifier: Verifier) -> float:
    """Reward the roles, and give the team's reward."""
    judge_contract(work, wanted)
    if work.verdicts:
        first, *later = work.verdicts
        coterie.reward(float(first.proved), name="proof", role="coder", explanation=str(first))
        if later:
            coterie.reward(float(later[-1].proved), name="proof", role="repairer", explanation=str(later[-1]))
    verdict = verifier.verify(work.programs[-1], wanted)
    coterie.reward(float(verdict.proved), explanation=f"against the contract of the task:\n{verdict}")
    return float(verdict.proved)


def judge_contract(work: Work, wanted: Contract) -> None:
    """Reward the specifier."""
    if work.contract is None:
        coterie.reward(0.0, name="contract", role="specifier", explanation=work.fault)
        return
    too_much, too_little = compare(work.contract, wanted)
    said = [f"forbids too much: {too_much}"] if too_much else []
    said += [f"allows too much: {too_little}"] if too_little else []
    value = ((too_much is None) + (too_little is None)) / 2
    coterie.reward(value, name="contract", role="specifier", explanation="\n".join(said) or "as it was wanted")
