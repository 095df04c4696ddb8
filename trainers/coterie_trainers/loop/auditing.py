"""Auditing: a share of a step's rollouts is played again at once, and what that says of their turns is their credit.

For the estimators ``counterfactual_mask`` and ``counterfactual_replay``. The replays are answered by the policies that
the step's rollouts are pinned to, before these are trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

from coterie.errors import AuditError
from coterie.vocabulary import RolloutState
from coterie_trainers.audits.audit import audited
from coterie_trainers.audits.findings import Method
from coterie_trainers.audits.playing import Stage
from coterie_trainers.audits.sampling import drawn
from coterie_trainers.credit import CreditedTurn
from coterie_trainers.loop.collecting import Collected
from coterie_trainers.loop.job import Job
from coterie_trainers.runners import tries


class StepAudits:
    """Audits of the steps' rollouts, as ``credit.audit`` wants them."""

    def __init__(self, job: Job) -> None:
        self.job = job

    async def add(self, collected: Collected, step: int, pinned: Mapping[str, int]) -> Collected:
        """What was collected, with the credit that audits gave; as it is where none is wanted."""
        job, wanted = self.job, self.job.config.credit.audit
        rollouts = [rollout for rollout in collected.ended if rollout.state is RolloutState.SUCCEEDED]
        if wanted is None or not rollouts:
            return collected
        began = time.monotonic()
        sample = drawn(rollouts, math.ceil(wanted.share * len(rollouts)), seed=f"{job.config.seed}/{step}")
        stage = Stage(
            job.store, job.run_id, pinned, answered_by=f"the policies of step {step}", tries=tries(job.config.runner)
        )
        try:
            found = await audited(
                stage,
                sample,
                method=Method(wanted.method),
                replays=wanted.replays,
                mask_texts=wanted.mask_texts,
            )
        except AuditError as error:
            job.progress.warn(f"step {step}: {error} Its turns are credited as by 'loo'.")
            return collected
        credit = {(one.rollout_id, one.role, one.turn): job.config.credit.team * one.credit for one in found.credits}
        figures = {"audited": found.rollouts, "audit_replays": found.replays, "audit_seconds": time.monotonic() - began}
        return replace(collected, audited=credit, figures={**collected.figures, **figures})


def with_audits(turns: list[CreditedTurn], credit: Mapping[tuple[str, str, int | None], float]) -> list[CreditedTurn]:
    """The turns, each with the audited credit of its own or of its role, as ``Collected.audited`` has them."""
    if not credit:
        return turns
    return [replace(turn, sample=replace(turn.sample, audited=_credit_of(turn, credit))) for turn in turns]


def _credit_of(turn: CreditedTurn, credit: Mapping[tuple[str, str, int | None], float]) -> float | None:
    sample = turn.sample
    own = credit.get((sample.rollout_id, sample.role, sample.turn))
    return own if own is not None else credit.get((sample.rollout_id, sample.role, None))
