"""Validating: looks at the validation split while training, and the promotion of the checkpoint that did best there."""

from __future__ import annotations

import shutil
import time

from coterie.vocabulary import Metrics, Mode, Resource, ResourceKind
from coterie_trainers.evaluation import Evaluator
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.policy_map import PolicyMap


class Validation:
    """Measures the team on the validation split."""

    def __init__(self, job: Job, evaluator: Evaluator, endpoints: Endpoints) -> None:
        self.job = job
        self.evaluator = evaluator
        self.endpoints = endpoints

    async def look(self, step: int) -> dict[str, float]:
        """Measure the policies as they are after a step; that step gets a checkpoint if it has none."""
        started = time.monotonic()
        job = self.job
        evaluation = job.config.evaluation
        tasks = job.splits["val"][: evaluation.val_tasks]
        success = await self.evaluator.success(
            tasks,
            self.endpoints.pinned,
            mode=Mode.VAL,
            samples=evaluation.val_samples,
            step=step,
            label="validation",
        )
        if step not in job.workspace.saved_steps():
            await job.backend.save(job.workspace.checkpoint(step))
        rollouts = len(tasks) * evaluation.val_samples
        figures = {"success": success, "rollouts": rollouts, "seconds": time.monotonic() - started}
        await job.store.add_metrics([Metrics(job.run_id, step, figures, stage="val")])
        job.sinks.write("val", step, figures)
        return figures

    async def looks(self) -> dict[int, float]:
        """Step → success, of all looks so far."""
        rows = await self.job.store.get_metrics(self.job.run_id, stage="val")
        return {row.step: float(row.values["success"] or 0.0) for row in rows}

    async def best_step(self) -> int | None:
        """The step that did best, the later of equals; None before the first look. Steps that were taken back do not count."""
        newest = self.job.workspace.saved_steps()[-1]
        looks = {step: success for step, success in (await self.looks()).items() if step <= newest}
        return max((success, step) for step, success in looks.items())[1] if looks else None

    async def promote_best(self) -> int:
        """Serve the checkpoint that did best, and make it the run's result; gives its step."""
        job = self.job
        newest = job.workspace.saved_steps()[-1]
        best = await self.best_step() or newest
        if best != newest:
            await self.endpoints.load(best)
            await self.endpoints.tell()
        evidence = {str(step): success for step, success in (await self.looks()).items()}
        decided = {each.subject for each in await job.store.get_decisions(job.run_id) if each.kind == "promoted"}
        for policy in PolicyMap(job.config).trained:
            subject = f"policy {policy} of step {best}"
            if subject in decided:
                continue
            target = job.workspace.policies / policy
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(job.workspace.checkpoint(best) / policy / "model", target)
            await job.store.publish(
                Resource(
                    f"weights/{policy}",
                    ResourceKind.WEIGHTS,
                    {"path": str(target), "step": best},
                    author=job.run_id,
                )
            )
            await job.decide("promoted", subject, {"validation success by step": evidence})
        return best
