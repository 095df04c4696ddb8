"""Tuning: searches for better prompts between training steps, so that prompts and weights of one team get better in turn.

    search → `every` steps → search → `every` steps → …      (section ``prompts``; with ``first: weights`` without the first search)

Why in turn: good prompts make a team reach rewards that its weights can then learn from, and weights that have learnt take to
other prompts than before. A search plays the team on the weights as they are and writes its winner into the rollouts to come;
the steps after it train on what the team does with these prompts.

Source: BetterTogether, arXiv 2407.10930 (prompts, weights, prompts); with policy gradients, mmGRPO, arXiv 2508.04660 (prompts
first, then weights). Where we depart: each search must show its gain on validation before it is used, and the run's result is
the step that did best there, weights and prompts together. The test split is not touched in between.

A search is a run of its own in the same store (kind ``optimize``, id ``<training run>-prompts-<step>``), so that its rollouts
never count as training or evaluation. What it decided, with figures, is written into the training run as well. A run that is
cut off in the middle of a search goes on in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.errors import NotFoundError
from coterie.vocabulary import JSON, Decision, Metrics, ResourceStatus, Run, RunState, now_ns
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.prompts import optimisers
from coterie_trainers.prompts.config import OptimizeConfig, PromptSetting, PromptTuning
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.run import PromptJob, check_budget, search_prompts
from coterie_trainers.sinks.sinks import Sinks

STAGE = "prompts"
"""The stage under which the store keeps a search's figures, at the step that it came before."""

PlayedBy = Callable[[Run], AbstractAsyncContextManager[None]]
"""Run → the block within which somebody plays its rollouts."""


class Tuner:
    """The searches of one training run. Without a section ``prompts`` it does nothing."""

    def __init__(self, job: Job, endpoints: Endpoints, played_by: PlayedBy, folder: Path) -> None:
        """``folder`` is where the texts of prompts are looked for."""
        self.job = job
        self.endpoints = endpoints
        self.played_by = played_by
        self.folder = folder
        self.settings = job.config.prompts
        self.results: dict[int, Mapping[str, Any]] = {}
        """Step → the summary of the search that came before it."""

    async def begin(self, first: int) -> None:
        """Recall the searches before the step ``first``, and go on with what the last one found."""
        for step in range(1, first):
            if self._is_due(step):
                run = await self._run(await self._id(step))
                if run is not None and run.state is RunState.SUCCEEDED:
                    self.results[step] = run.summary
        if self.results:
            self.endpoints.pin(versions_of(self.results[max(self.results)]))

    async def before(self, step: int) -> None:
        """Search if one is due before this step; its winner is played from now on.

        Raises:
            ConfigError: the section ``prompts`` does not fit the team.
            RewardError: a reward is outside of its declared range.
            BackendError: the reflecting model cannot be asked.
        """
        if self.settings is None or not self._is_due(step):
            return
        id_ = await self._id(step)
        run = await self._run(id_)
        if run is None or run.state is not RunState.SUCCEEDED:
            run = await self._search(
                run or Run(id_, "optimize", f"{self.job.config.name}, before step {step}", {}), step
            )
        self.results[step] = run.summary
        self.endpoints.pin(versions_of(run.summary))
        await self._tell(step, run)

    async def go_back(self, step: int) -> None:
        """Use the prompts again that the team had at the end of a step, and make them the active ones."""
        if not self.results or step >= max(self.results):
            return
        earlier = [before for before in self.results if before <= step]
        first = self.results[min(self.results)]
        versions = versions_of(self.results[max(earlier)] if earlier else {**first, "taken": False})
        self.endpoints.pin(versions)
        for name, version in versions.items():
            await self.job.store.mark(name, version, ResourceStatus.ACTIVE)

    def _is_due(self, step: int) -> bool:
        settings = self.settings
        return settings is not None and (step - 1) % settings.every == 0 and (step > 1 or settings.first == "prompts")

    async def _search(self, run: Run, step: int) -> Run:
        """Search, or go on with a search that was cut off."""
        job, settings = self.job, self.settings
        assert settings is not None
        config = await self._config(settings, run.name)
        run = replace(run, config={"training_run": job.run_id, "before_step": step, **config.model_dump(mode="json")})
        await job.store.save_run(run)
        splits = searched_splits(job.config, job.splits)
        optimiser = optimisers.get(config.optimiser_name, config.optimiser_settings)
        job.progress.note(f"before step {step}: tuning prompts with {config.optimiser_name}, run {run.id}")
        search = PromptJob(
            config, run, job.store, splits, self.folder, job.progress, Sinks(), dict(self.endpoints.pinned)
        )
        journal = job.workspace.searches / f"{run.id}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        async with self.played_by(run):
            with Journal(journal) as opened:
                summary = await search_prompts(search, opened, optimiser)
        finished = replace(run, state=RunState.SUCCEEDED, finished_ns=now_ns(), summary=summary)
        await job.store.save_run(finished)
        job.progress.stage("training", job.config.training.steps)
        job.progress.advance(step - 1)
        return finished

    async def _config(self, settings: PromptTuning, name: str) -> OptimizeConfig:
        """What a search is made with: the section, and after the first search the prompts as they are."""
        config = searched_with(self.job.config, settings, name)
        if not self.results:
            return config
        found: Mapping[str, Any] = self.results[max(self.results)]["prompts"]
        versions = versions_of(self.results[max(self.results)])
        prompts: dict[str, PromptSetting] = {}
        for prompt, one in found.items():
            content = (await self.job.store.get_resource(prompt, versions[prompt])).content
            prompts[prompt] = PromptSetting(
                role=one["role"],
                part=one["part"],
                text=str(content["text"]),
                placeholders=[str(each) for each in content.get("placeholders", ())],
            )
        return config.model_copy(update={"prompts": prompts})

    async def _tell(self, step: int, run: Run) -> None:
        """Write into the training run what a search decided and what it cost."""
        job, summary = self.job, run.summary
        subject = f"prompts {', '.join(summary['prompts'])} before step {step}, run {run.id}"
        decided = {each.subject for each in await job.store.get_decisions(job.run_id)}
        if subject not in decided:
            kind = "promoted" if summary["taken"] else "kept"
            keys = ("reason", "prompts", "val", "val_gain", "spent")
            evidence: dict[str, JSON] = {"run": run.id, **{key: summary[key] for key in keys}}
            await job.store.add_decision(Decision(job.run_id, kind, subject, evidence))
        used = summary["winner"] if summary["taken"] else summary["seed"]
        measured = {"score_before": summary["val"][summary["seed"]], "score": summary["val"][used]}
        figures: dict[str, float] = {
            "taken": float(summary["taken"]),
            **{name: value for name, value in measured.items() if value is not None},
            **{f"spent/{name}": value for name, value in summary["spent"].items()},
        }
        await job.store.add_metrics([Metrics(job.run_id, step, figures, stage=STAGE)])
        job.sinks.write(STAGE, step, figures)

    async def _run(self, id_: str) -> Run | None:
        try:
            return await self.job.store.get_run(id_)
        except NotFoundError:
            return None

    async def _id(self, step: int) -> str:
        """Names the search before a step. One whose weights the guard has taken back is not that of the steps made anew."""
        decisions = await self.job.store.get_decisions(self.job.run_id)
        back = [each.evidence.get("step") for each in decisions if each.kind == "rolled_back"]
        undone = sum(isinstance(to, int) and to < step - 1 for to in back)
        return f"{self.job.run_id}-prompts-{step:06d}" + (f"-{undone}" if undone else "")


def versions_of(summary: Mapping[str, Any]) -> dict[str, int]:
    """Prompt name → the version that a search left in use."""
    which = "winner" if summary["taken"] else "seed"
    return {name: int(one[which]) for name, one in summary["prompts"].items()}


def searched_with(config: TrainConfig, settings: PromptTuning, name: str) -> OptimizeConfig:
    """The configuration of a search in a training run."""
    own = {key: getattr(settings, key) for key in type(settings).model_fields if key not in ("every", "first")}
    shared = {key: getattr(config, key) for key in ("seed", "store", "dataset", "agents", "runner")}
    if config.credit.range is not None and "reward" not in settings.model_fields_set:
        own["reward"] = settings.reward.model_copy(update={"range": config.credit.range})
    return OptimizeConfig(name=name, **own, **shared)


def searched_splits(config: TrainConfig, splits: Mapping[str, Any]) -> dict[str, Any]:
    """What a search may see: the validation tasks of a look, and no test task."""
    return {"train": splits["train"], "val": splits["val"][: config.evaluation.val_tasks], "test": []}


def check_tuning(config: TrainConfig, splits: Mapping[str, Any]) -> None:
    """Refuse a section ``prompts`` that cannot work, before anything is started.

    Raises:
        ConfigError: the optimiser is unknown or does not take its settings, or the budget does not pay for measuring.
    """
    if config.prompts is not None:
        optimiser = optimisers.get(config.prompts.optimiser_name, config.prompts.optimiser_settings)
        optimisers.check_model(optimiser, config.prompts.reflection)
        check_budget(searched_with(config, config.prompts, config.name), searched_splits(config, splits))
