"""The training steps: collect, learn, publish, and after each the figures, the checkpoint and the looks that are due; before
some a search for better prompts.

After each step a checkpoint is written, so that a run that is cut off goes on from its last step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from coterie.errors import NothingToTrainError
from coterie.vocabulary import Metrics
from coterie_trainers.evaluation import team_success
from coterie_trainers.health.role_figures import role_figures
from coterie_trainers.health.staleness import staleness
from coterie_trainers.loop.auditing import StepAudits
from coterie_trainers.loop.collecting import Collector
from coterie_trainers.loop.filling import Filling
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.learning import Learner
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.loop.tuning import Tuner
from coterie_trainers.loop.validating import Validation
from coterie_trainers.loop.watching import Watch


class Steps:
    """The training steps of a run, from the first that is missing to the last."""

    def __init__(
        self,
        job: Job,
        collector: Collector,
        learner: Learner,
        endpoints: Endpoints,
        validation: Validation,
        watch: Watch,
        tuner: Tuner,
    ) -> None:
        self.job = job
        self.collector = collector
        self.learner = learner
        self.filling = Filling(job, learner)
        self.audits = StepAudits(job)
        self.endpoints = endpoints
        self.validation = validation
        self.watch = watch
        self.tuner = tuner

    async def run(self, first: int) -> None:
        """Make the steps from ``first`` on.

        Raises:
            NothingToTrainError: too many steps in a row had no usable group.
            StoppedByGuardError: the guard ended the run.
            ConfigError, RewardError, BackendError: a search for prompts cannot go on (``Tuner.before``).
        """
        job, training = self.job, self.job.config.training
        await self.tuner.begin(first)
        if first > 1 and self._look_is_due(first - 1, seconds=0.0) and first - 1 not in await self.validation.looks():
            await self.validation.look(first - 1)
        earlier = await job.store.get_metrics(job.run_id)
        seconds = sum(_number(row.values.get("seconds")) for row in earlier if row.step < first)
        empty = 0
        await self.watch.begin(first)
        job.progress.stage("training", training.steps)
        if first > 1:
            await self.learner.recall(first - 1)
            await self._recall_collection(first - 1)
            job.progress.advance(first - 1)
        for step in range(first, training.steps + 1):
            if self._time_is_up(seconds):
                job.progress.note(f"stopped after {step - 1} steps: training.max_seconds = {training.max_seconds:g}")
                break
            await self.tuner.before(step)
            started = time.monotonic()
            figures = await self._step(step)
            # Before the checkpoint: a step that has one is never made again, so its figures must be there.
            remembered = [*self._collection_memory(step), *self.learner.memory(step)]
            await job.store.add_metrics([Metrics(job.run_id, step, figures), *remembered])
            saving = time.monotonic()
            if step % training.checkpoint_every == 0:
                await job.backend.save(job.workspace.checkpoint(step))
                job.workspace.prune_checkpoints(keep={await self.validation.best_step(), *self.watch.keeps})
            now = time.monotonic()
            figures |= {"save_seconds": now - saving, "seconds": now - started}
            await job.store.add_metrics([Metrics(job.run_id, step, figures)])
            job.sinks.write("train", step, figures)
            seconds += figures["seconds"]
            empty = 0 if figures["rows"] else empty + 1
            if empty >= training.stop_after_empty_steps:
                raise NothingToTrainError(_why_empty(empty, figures))
            shown = {"success": figures["success"]}
            look = None
            if self._look_is_due(step, seconds):
                look = await self.validation.look(step)
                seconds += look["seconds"]
                shown["validation"] = look["success"]
            job.progress.advance(1, **shown)
            await self.watch.after_step(step, figures, look)
        await self.collector.withdraw("training has ended")

    async def _step(self, step: int) -> dict[str, float]:
        clock = _Clock()
        pinned = self.endpoints.pinned
        collected = await self.filling.fill(await self.collector.collect(step, pinned), step, pinned)
        collected = await self.audits.add(collected, step, pinned)
        clock.lap("rollout_seconds")
        if failed := collected.failed:
            self.job.progress.warn(
                f"step {step}: {len(failed)} of {len(collected.ended)} rollouts failed; the first: {failed[0].reason}"
            )
        lesson = await self.learner.study(collected, step)
        clock.lap("credit_seconds")
        figures: dict[str, float] = {"rollouts": len(collected.ended), "failed": len(failed)}
        figures |= {"groups": len({rollout.group_id for rollout in collected.ended})}
        figures |= collected.figures
        figures |= staleness(lesson.turns, self.endpoints.versions)
        figures |= role_figures(lesson.turns, lesson.advantages, self.endpoints.versions)
        figures |= await self.learner.update(lesson)
        clock.lap("train_seconds")
        await self.endpoints.publish(lesson.policies)
        clock.lap("sync_seconds")
        figures |= await self.watch.verify(step, collected.episodes)
        clock.lap("verify_seconds")
        figures |= {"success": team_success(collected.episodes, collected.ended)}
        return figures | self.learner.figures(lesson) | clock.laps

    def _collection_memory(self, step: int) -> list[Metrics]:
        memory = self.collector.memory()
        return [Metrics(self.job.run_id, step, memory, stage="collection")] if memory else []

    async def _recall_collection(self, step: int) -> None:
        for row in await self.job.store.get_metrics(self.job.run_id, stage="collection"):
            if row.step == step:
                self.collector.recall(row.values)

    def _look_is_due(self, step: int, seconds: float) -> bool:
        """True where the validation split is to be looked at: every so many steps, and after the last."""
        last = step == self.job.config.training.steps or self._time_is_up(seconds)
        return last or step % self.job.config.evaluation.every == 0

    def _time_is_up(self, seconds: float) -> bool:
        limit = self.job.config.training.max_seconds
        return limit is not None and seconds >= limit


def _why_empty(steps: int, figures: Mapping[str, float]) -> str:
    if figures["calls"] == 0:
        cause = "no LLM call was seen: is the team's framework instrumented, and does it call its model?"
    elif figures["untrainable"] == figures["calls"]:
        cause = "no call came with token ids: does the model server return them (vLLM does when asked)?"
    elif figures["success"] in (0.0, 1.0):
        cause = f"all rollouts of a task got the same reward (success {figures['success']:.0%})."
    else:
        cause = "all advantages were zero: within each group every reward is the same."
    return f"{steps} training steps in a row had nothing to learn from. In the last one {cause}"


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def _number(value: float | int | str | None) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
