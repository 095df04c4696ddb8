"""The training loop: run the team, give credit, update the policies, publish, measure.

    tasks → rollouts (agents, over HTTP) → episodes → credited turns → advantages → rows → update → publish → …

One step is synchronous: all rollouts of a step are made by the policy versions that the step before published. After
each step a checkpoint is written, so that a run that is cut off goes on from its last step. The final policies are those
of the checkpoint that did best on validation; the test split is measured before the first step and after the last.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import coterie
from coterie.apps import let_clients_be_made
from coterie.assembly import load_episodes
from coterie.errors import ConfigError, NothingToTrainError
from coterie.interfaces import Backend
from coterie.roles import set_role_map
from coterie.store.base import Store
from coterie.vocabulary import (
    Decision,
    Endpoint,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Task,
    new_id,
    now_ns,
)
from coterie_trainers import advantages
from coterie_trainers.batches import build_batch
from coterie_trainers.config import TrainConfig
from coterie_trainers.credit import Credit, credited_turns
from coterie_trainers.datasets import load_splits
from coterie_trainers.draws import draw_tasks
from coterie_trainers.evaluation import Evaluator, team_success
from coterie_trainers.prepare import ensure_prepared
from coterie_trainers.progress import Progress
from coterie_trainers.runners import runner_here, runners_elsewhere, tries
from coterie_trainers.team import load_team
from coterie_trainers.workspace import Workspace


async def train(
    app_spec: str,
    config: TrainConfig,
    *,
    folder: Path,
    work: Path,
    progress: Progress,
    fresh: bool = False,
) -> Run:
    """Train the policies of a team; gives the finished run. A run that was cut off in ``work`` is resumed.

    Args:
        app_spec: The rollout function, as ``app.py:team``.
        config: What to train, on what, and how.
        folder: Where the app, ``prepare`` and relative data paths are looked for: the config file's folder.
        work: Where everything is written.
        progress: Is told what happens.
        fresh: Forget what ``work`` holds and start anew.

    Raises:
        ConfigError: the app, the data or a setting is wrong, or ``work`` holds a run of another configuration.
        BackendError: a model server or trainer failed.
        NothingToTrainError: too many steps in a row had no usable group.
    """
    let_clients_be_made()
    # Runners elsewhere have the team's frameworks; this machine may lack them.
    function = load_team(app_spec, folder=folder) if config.runner.where == "here" else None
    estimate = advantages.check(config.credit.advantage)
    with Workspace(work) as workspace:
        if fresh:
            workspace.clear()
        if config.prepare:
            await ensure_prepared(
                config.prepare, folder=folder, work=workspace.folder, seed=config.seed, progress=progress
            )
        splits = load_splits(config.dataset, folders=(folder, workspace.folder), name=config.name)
        set_role_map(config.agents)
        async with coterie.connect(config.store or str(workspace.store_path)) as store:
            run, resumed = await _open_run(store, workspace, config, app_spec)
            if run.state is RunState.SUCCEEDED:
                progress.note(f"Run {run.id} is finished already; --fresh starts a new one.")
                return run
            await store.add_tasks([task for tasks in splits.values() for task in tasks])
            backend = make_backend(config, workspace, folder)
            loop = _Loop(config, run, store, backend, workspace, progress, splits, estimate)
            try:
                async with (
                    runner_here(store, function, run, config.runner)
                    if function is not None
                    else runners_elsewhere(
                        store, run, config.runner, app=app_spec, url=str(config.store), progress=progress
                    )
                ):
                    return await loop.run(resumed)
            except (asyncio.CancelledError, KeyboardInterrupt):
                await asyncio.shield(loop.stop(RunState.STOPPED, "interrupted"))
                raise
            except Exception as error:
                await loop.stop(RunState.FAILED, f"{type(error).__name__}: {error}")
                raise
            finally:
                await asyncio.shield(backend.close())


class _Loop:
    """The state of one call of ``train``."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        store: Store,
        backend: Backend,
        workspace: Workspace,
        progress: Progress,
        splits: Mapping[str, Sequence[Task]],
        estimate: advantages.Estimate,
    ) -> None:
        self.config = config
        self.record = run
        self.store = store
        self.backend = backend
        self.workspace = workspace
        self.progress = progress
        self.splits = splits
        self.estimate = estimate
        self.pinned: dict[str, int] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.evaluator = Evaluator(store, run.id, progress, tries(config.runner))
        self.session = new_id("s")

    async def run(self, resumed: bool) -> Run:
        """Everything from the first server start to the finished run."""
        config = self.config
        if resumed:
            await self._cancel_leftovers()
        done = self.workspace.saved_steps()
        self.progress.stage("starting model servers and trainers")
        self.endpoints = dict(await self.backend.serve())
        if done:
            await self._load(done[-1])
            self.progress.note(f"resuming after step {done[-1]}")
        await self._publish_endpoints()
        await self.evaluator.measure_test(
            "before", self.splits["test"], self.pinned, samples=config.evaluation.test_samples
        )
        await self._train(first=(done[-1] if done else 0) + 1)
        await self._promote_best()
        await self.evaluator.measure_test(
            "after", self.splits["test"], self.pinned, samples=config.evaluation.test_samples
        )
        return await self._finish()

    async def stop(self, state: RunState, reason: str) -> None:
        """Write down that the run ended early; it can be resumed."""
        await self._cancel_leftovers()
        self.record = replace(self.record, state=state, finished_ns=now_ns())
        await self.store.save_run(self.record)
        await self._decide("stopped", f"run {self.record.id}", {"reason": reason})

    async def _train(self, first: int) -> None:
        training = self.config.training
        looks = {row.step for row in await self.store.get_metrics(self.record.id, stage="val")}
        if first > 1 and self._look_is_due(first - 1, seconds=0.0) and first - 1 not in looks:
            await self._validate(first - 1)
        earlier = await self.store.get_metrics(self.record.id)
        seconds = sum(_number(row.values.get("seconds")) for row in earlier if row.step < first)
        empty = 0
        self.progress.stage("training", training.steps)
        if first > 1:
            await self._recall_credit(first - 1)
            self.progress.advance(first - 1)
        for step in range(first, training.steps + 1):
            if self._time_is_up(seconds):
                self.progress.note(f"stopped after {step - 1} steps: training.max_seconds = {training.max_seconds:g}")
                break
            started = time.monotonic()
            figures = await self._step(step)
            # Before the checkpoint: a step that has one is never made again, so its figures must be there.
            await self.store.add_metrics([Metrics(self.record.id, step, figures), *self._credit_memory(step)])
            saving = time.monotonic()
            if step % training.checkpoint_every == 0:
                await self.backend.save(self.workspace.checkpoint(step))
                self.workspace.prune_checkpoints(keep=await self._best_step())
            now = time.monotonic()
            figures |= {"save_seconds": now - saving, "seconds": now - started}
            await self.store.add_metrics([Metrics(self.record.id, step, figures)])
            seconds += figures["seconds"]
            empty = 0 if figures["rows"] else empty + 1
            if empty >= training.stop_after_empty_steps:
                raise NothingToTrainError(self._why_empty(empty, figures))
            shown = {"success": figures["success"]}
            if self._look_is_due(step, seconds):
                look = await self._validate(step)
                seconds += look["seconds"]
                shown["validation"] = look["success"]
            self.progress.advance(1, **shown)

    def _credit_memory(self, step: int) -> list[Metrics]:
        """What estimators carry to the next step, kept with the step's figures so that a resumed run goes on with it."""
        remembered = self.estimate.remembered()
        values = {name: json.dumps(memory) for name, memory in remembered.items()}
        return [Metrics(self.record.id, step, values, stage="credit")] if values else []

    async def _recall_credit(self, step: int) -> None:
        for row in await self.store.get_metrics(self.record.id, stage="credit"):
            if row.step == step:
                self.estimate.recall({name: json.loads(str(memory)) for name, memory in row.values.items()})

    def _look_is_due(self, step: int, seconds: float) -> bool:
        """True where the validation split is to be looked at: every so many steps, and after the last."""
        last = step == self.config.training.steps or self._time_is_up(seconds)
        return last or step % self.config.evaluation.every == 0

    def _time_is_up(self, seconds: float) -> bool:
        limit = self.config.training.max_seconds
        return limit is not None and seconds >= limit

    async def _step(self, step: int) -> dict[str, float]:
        config = self.config
        clock = _Clock()
        tasks = draw_tasks(
            self.splits["train"],
            count=config.training.tasks_per_step,
            seed=config.seed,
            step=step,
            balance=config.training.balance,
        )
        rollouts = [
            Rollout(
                task.id,
                run_id=self.record.id,
                group_id=f"{self.record.id}/{step}/{task.id}",
                step=step,
                resources=self.pinned,
                **tries(config.runner),
                metadata={"session": self.session},
            )
            for task in tasks
            for _ in range(config.training.rollouts_per_task)
        ]
        await self.store.enqueue(rollouts)
        ended = await self.store.wait([rollout.id for rollout in rollouts])
        clock.lap("rollout_seconds")
        failed = [rollout for rollout in ended if rollout.state is not RolloutState.SUCCEEDED]
        if failed:
            self.progress.warn(
                f"step {step}: {len(failed)} of {len(ended)} rollouts failed; the first: {failed[0].reason}"
            )
        episodes = await load_episodes(
            self.store, [rollout.id for rollout in ended if rollout.state is RolloutState.SUCCEEDED]
        )
        credit = Credit(team=config.credit.team, local=config.credit.local)
        turns = credited_turns(episodes, credit)
        advantages_N = self.estimate([turn.sample for turn in turns])
        batch = build_batch(turns, advantages_N, self._policy_of())
        clock.lap("credit_seconds")
        figures: dict[str, float] = {"failed": len(failed)}
        for policy, rows in batch.rows.items():
            if rows:
                update = await self.backend.update(policy, rows, temperature=config.sampling.temperature)
                prefix = "" if len(batch.rows) == 1 else f"{policy}/"
                figures |= {f"{prefix}{name}": value for name, value in update.metrics.items()}
        clock.lap("train_seconds")
        for policy, rows in batch.rows.items():
            if rows:
                await self._publish(policy)
        clock.lap("sync_seconds")
        rewards = [reward for episode in episodes for reward in episode.rewards if reward.name == credit.name]
        by_role: dict[str, list[float]] = defaultdict(list)
        for reward in rewards:
            if reward.role is not None:
                by_role[reward.role].append(reward.value)
        figures |= {f"role_reward/{role}": sum(values) / len(values) for role, values in by_role.items()}
        figures |= {
            "success": team_success(episodes, ended),
            "calls": len(turns),
            "rows": sum(map(len, batch.rows.values())),
            "untrainable": batch.untrainable,
            "zero_advantage": batch.zero_advantage,
            "tokens": sum(sum(row.response_mask) for rows in batch.rows.values() for row in rows),
        }
        figures |= {f"calls/{role}": count for role, count in Counter(turn.turn.role for turn in turns).items()}
        return figures | clock.laps

    async def _validate(self, step: int) -> dict[str, float]:
        started = time.monotonic()
        evaluation = self.config.evaluation
        tasks = self.splits["val"][: evaluation.val_tasks]
        success = await self.evaluator.success(
            tasks, self.pinned, mode=Mode.VAL, samples=evaluation.val_samples, step=step, label="validation"
        )
        if step not in self.workspace.saved_steps():
            await self.backend.save(self.workspace.checkpoint(step))
        figures = {"success": success, "seconds": time.monotonic() - started}
        await self.store.add_metrics([Metrics(self.record.id, step, figures, stage="val")])
        return figures

    async def _best_step(self) -> int | None:
        """The step that did best on validation, the later of equals; None before the first look."""
        looks = await self.store.get_metrics(self.record.id, stage="val")
        return max((_number(look.values["success"]), look.step) for look in looks)[1] if looks else None

    async def _promote_best(self) -> None:
        """Serve the checkpoint that did best on validation, and make it the run's result."""
        looks = await self.store.get_metrics(self.record.id, stage="val")
        evidence = {str(look.step): look.values["success"] for look in looks}
        newest = self.workspace.saved_steps()[-1]
        best = await self._best_step() or newest
        if best != newest:
            await self._load(best)
            await self._publish_endpoints()
        decided = {each.subject for each in await self.store.get_decisions(self.record.id) if each.kind == "promoted"}
        for policy in self.endpoints:
            subject = f"policy {policy} of step {best}"
            if subject in decided:
                continue
            target = self.workspace.policies / policy
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(self.workspace.checkpoint(best) / policy / "model", target)
            await self.store.publish(
                Resource(
                    f"weights/{policy}",
                    ResourceKind.WEIGHTS,
                    {"path": str(target), "step": best},
                    author=self.record.id,
                )
            )
            await self._decide("promoted", subject, {"validation success by step": evidence})

    async def _finish(self) -> Run:
        self.record = replace(self.record, state=RunState.SUCCEEDED, finished_ns=now_ns())
        await self.store.save_run(self.record)
        self.progress.close()
        return self.record

    async def _load(self, step: int) -> None:
        for policy, version in (await self.backend.load(self.workspace.checkpoint(step))).items():
            self.endpoints[policy] = replace(self.endpoints[policy], version=version)

    async def _publish(self, policy: str) -> None:
        version = await self.backend.publish(policy)
        self.endpoints[policy] = replace(self.endpoints[policy], version=version)
        await self._publish_endpoint(policy)

    async def _publish_endpoints(self) -> None:
        for policy in self.endpoints:
            await self._publish_endpoint(policy)

    async def _publish_endpoint(self, policy: str) -> None:
        name = f"endpoint/{policy}"
        published = await self.store.publish(
            Resource(name, ResourceKind.ENDPOINT, asdict(self.endpoints[policy]), author=self.record.id)
        )
        self.pinned = {**self.pinned, name: published.version}

    async def _cancel_leftovers(self) -> None:
        for state in (RolloutState.QUEUED, RolloutState.RUNNING):
            async for page in _pages(self.store, self.record.id, state):
                await self.store.cancel([rollout.id for rollout in page], reason="the run was cut off")

    async def _decide(self, kind: str, subject: str, evidence: Mapping[str, Any]) -> None:
        await self.store.add_decision(Decision(self.record.id, kind, subject, evidence))

    def _policy_of(self) -> dict[str, str] | str:
        """Role → policy, or the one policy that plays all roles."""
        for name, policy in self.config.policies.items():
            if not policy.roles:
                return name
        return {role: name for name, policy in self.config.policies.items() for role in policy.roles}

    def _why_empty(self, steps: int, figures: Mapping[str, float]) -> str:
        if figures["calls"] == 0:
            cause = "no LLM call was seen: is the team's framework instrumented, and does it call its model?"
        elif figures["untrainable"] == figures["calls"]:
            cause = "no call came with token ids: does the model server return them (vLLM does when asked)?"
        elif figures["success"] in (0.0, 1.0):
            cause = f"all rollouts of a task got the same reward (success {figures['success']:.0%})."
        else:
            cause = "all advantages were zero: within each group every reward is the same."
        return f"{steps} training steps in a row had nothing to learn from. In the last one {cause}"


async def _open_run(store: Store, workspace: Workspace, config: TrainConfig, app_spec: str) -> tuple[Run, bool]:
    """The run to go on with, and whether it had begun before. The folder knows its run: a store may hold many."""
    settings = {"app": app_spec, **config.model_dump(mode="json")}
    run_id = workspace.run_id()
    if run_id is None:
        run = Run(new_id("run"), "train", config.name, settings)
        await store.save_run(run)
        workspace.remember_run(run.id)
        return run, False
    run = await store.get_run(run_id)
    changed = list(_differences(settings, run.config))
    if changed:
        raise ConfigError(
            f"The work folder holds run {run.id}, which was made with other settings for: {', '.join(changed)}. "
            "Use the same settings to resume it, --fresh to start anew, or another --out."
        )
    if run.state is not RunState.SUCCEEDED:
        run = replace(run, state=RunState.RUNNING, finished_ns=None)
        await store.save_run(run)
    return run, True


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The keys, such as ``training.steps``, whose values differ."""
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{above}{key}.")
        elif one != other:
            yield f"{above}{key}"


def make_backend(config: TrainConfig, workspace: Workspace, folder: Path) -> Backend:
    """The backend that the configuration names: one of the entry points ``coterie.backends``.

    Raises:
        ConfigError: there is none of this name.
    """
    found = {entry.name: entry for entry in entry_points(group="coterie.backends")}
    if config.backend.kind not in found:
        raise ConfigError(f"backend.kind: no backend {config.backend.kind!r}; there are: {', '.join(sorted(found))}.")
    policies = {}
    for name, policy in config.policies.items():
        path = next(
            (base / policy.model for base in (folder, workspace.folder) if (base / policy.model).exists()), None
        )
        policies[name] = policy if path is None else policy.model_copy(update={"model": str(path.resolve())})
    make = found[config.backend.kind].load()
    return cast(
        Backend,
        make(
            policies,
            config.backend,
            config.training,
            config.sampling,
            folder=workspace.folder,
            seed=config.seed,
        ),
    )


async def _pages(store: Store, run_id: str, state: RolloutState) -> AsyncIterator[Sequence[Rollout]]:
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, state=state, after=cursor)
        if page.items:
            yield page.items
        if page.cursor is None:
            return
        cursor = page.cursor


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
