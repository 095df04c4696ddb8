"""Watching: what the guard sees of a run, says, and does when it stops one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from coterie.episodes import Episode
from coterie.errors import StoppedByGuardError
from coterie.vocabulary import Metrics
from coterie_trainers.health.good_version import BEGINNING, good_steps, step_to_go_back_to
from coterie_trainers.health.guard import judge
from coterie_trainers.health.history import History, number
from coterie_trainers.health.reverify import reverify
from coterie_trainers.health.verdict import Level, Verdict
from coterie_trainers.loop.collecting import Collector
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.loop.tuning import Tuner

STAGE = "guard"
"""The stage under which the store keeps what the guard said at a step: ``level``, and ``<rule>, <subject>`` → reason."""


class Watch:
    """The guard of one run. Without a section ``guard`` it does nothing."""

    def __init__(self, job: Job, endpoints: Endpoints, collector: Collector, tuner: Tuner) -> None:
        self.job = job
        self.endpoints = endpoints
        self.collector = collector
        self.tuner = tuner
        self.guard = job.config.guard
        self.history = History()
        self.warned: set[int] = set()
        """Steps at which something was found."""
        self.said: frozenset[tuple[str, str, Level]] = frozenset()
        """Rule, subject and level of what was found last: it is not said again."""
        self.verifier_failed = False

    async def begin(self, first: int) -> None:
        """Recall what was before the step ``first``; a run that begins gets a checkpoint to go back to."""
        if self.guard is None:
            return
        rows = await self.job.store.get_metrics(self.job.run_id)
        self.history = History.of(rows, until=first - 1)
        self.warned = {row.step for row in rows if row.stage == STAGE and row.step < first}
        if first == 1 and BEGINNING not in self.job.workspace.saved_steps():
            await self.job.backend.save(self.job.workspace.checkpoint(BEGINNING))

    async def verify(self, step: int, episodes: Sequence[Episode]) -> dict[str, float]:
        """What the held-out verifier says of a step's rollouts, if there is one."""
        if self.guard is None or self.job.verifier is None:
            return {}
        tasks = {task.id: task for task in self.job.splits["train"]}
        verified = await reverify(
            self.job.verifier,
            tasks,
            episodes,
            most=self.guard.verified_rollouts,
            seed=f"{self.job.config.seed}/{step}",
        )
        if verified.failures and not self.verifier_failed:
            self.verifier_failed = True
            self.job.progress.warn(
                f"step {step}: the verifier {self.guard.verifier} failed on {len(verified.failures)} rollouts, which are left "
                f"out here and in later steps; the first: {verified.failures[0]}"
            )
        return verified.figures()

    @property
    def keeps(self) -> set[int]:
        """The steps whose checkpoint must stay, so that there is something to go back to."""
        return {max(self._good_steps())} if self.guard is not None else set()

    async def after_step(self, step: int, figures: Mapping[str, float], look: Mapping[str, float] | None) -> None:
        """Judge the run after a step, with its look at the validation split if it had one.

        Raises:
            StoppedByGuardError: something is so wrong that the policies went back to their last good version.
        """
        if self.guard is None:
            return
        self.history.add(Metrics(self.job.run_id, step, figures))
        if look is not None:
            self.history.add(Metrics(self.job.run_id, step, look, stage="val"))
        verdict = judge(self.history, self.guard)
        self.job.sinks.write(STAGE, step, {"level": verdict.level})
        await self._say(verdict)
        if verdict.level is Level.STOP:
            await self._go_back(verdict)

    async def _say(self, verdict: Verdict) -> None:
        found = frozenset((each.rule, each.subject, each.level) for each in verdict.findings)
        for each in verdict.findings:
            if (each.rule, each.subject, each.level) not in self.said:
                self.job.progress.warn(f"guard, step {verdict.step}: {each.subject}: {each.reason} ({each.rule})")
        self.said = found
        if not verdict.findings:
            return
        self.warned.add(verdict.step)
        words = {f"{each.rule}, {each.subject}": each.reason for each in verdict.findings}
        row = Metrics(self.job.run_id, verdict.step, {"level": verdict.level.name.lower(), **words}, stage=STAGE)
        await self.job.store.add_metrics([row])

    async def _go_back(self, verdict: Verdict) -> NoReturn:
        workspace = self.job.workspace
        await self.collector.withdraw("the guard stopped the run")
        back = step_to_go_back_to(self._good_steps(), workspace.saved_steps(), since=verdict.since)
        reason = "; ".join(f"{each.subject}: {each.reason}" for each in verdict.stops)
        went = "There was no checkpoint to go back to"
        if back is not None:
            await self.endpoints.load(back)
            await self.endpoints.tell()
            await self.tuner.go_back(back)
            workspace.reject_checkpoints(after=back)
            went = f"The policies are those of step {back} again"
            evidence = {
                "reason": reason,
                "step": back,
                "findings": [
                    {"rule": each.rule, "subject": each.subject, "reason": each.reason, "since": each.since}
                    for each in verdict.stops
                ],
            }
            await self.job.decide("rolled_back", f"all policies, from step {verdict.step} to step {back}", evidence)
        raise StoppedByGuardError(
            f"The guard stopped the run after step {verdict.step}: {reason}. {went}; the same command goes on from there, "
            "with other limits under 'guard' if this was a false alarm."
        )

    def _good_steps(self) -> list[int]:
        limits = self.guard.validation if self.guard is not None else None
        margin = limits.warn if limits is not None and limits.warn is not None else 1.0
        looks = {step: number(values.get("success")) for step, values in self.history.looks.items()}
        return good_steps(looks, self.warned, margin)
