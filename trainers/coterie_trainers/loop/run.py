"""One training run from its opening to its finish.

The final policies are those of the checkpoint that did best on validation; the test split is measured before the first
step and after the last.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import coterie
from coterie.apps import let_clients_be_made
from coterie.errors import StoppedByGuardError
from coterie.roles import set_role_map
from coterie.vocabulary import Run, RunState, now_ns
from coterie_trainers import advantages
from coterie_trainers.config import TrainConfig
from coterie_trainers.credit import Credit
from coterie_trainers.datasets import load_splits
from coterie_trainers.evaluation import Evaluator
from coterie_trainers.health.reverify import load_verifier
from coterie_trainers.loop.carrying_over import AsyncCollector
from coterie_trainers.loop.collecting import SyncCollector, cancel_leftovers
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.learning import Learner, credit_as_set
from coterie_trainers.loop.opening import make_backend
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.loop.steps import Steps
from coterie_trainers.loop.tuning import PlayedBy, Tuner, check_tuning
from coterie_trainers.loop.validating import Validation
from coterie_trainers.loop.valuing import check_critic
from coterie_trainers.loop.watching import Watch
from coterie_trainers.prepare import ensure_prepared
from coterie_trainers.progress import Progress
from coterie_trainers.run_opening import open_run
from coterie_trainers.runners import runner_here, runners_elsewhere, tries
from coterie_trainers.sinks.sink import RunFacts
from coterie_trainers.sinks.sinks import check_sinks, open_sinks
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
        StoppedByGuardError: the guard ended the run; the policies are back at their last good version.
    """
    let_clients_be_made()
    # Runners elsewhere have the team's frameworks; this machine may lack them.
    function = load_team(app_spec, folder=folder) if config.runner.where == "here" else None
    estimate = advantages.check(config.credit.advantage, config.credit.options)
    guard = config.guard
    verifier = load_verifier(guard.verifier, folder=folder) if guard is not None and guard.verifier else None
    credit = credit_as_set(config.credit)
    check_critic(config.critic, estimate)
    check_sinks(config.metrics)
    with Workspace(work) as workspace:
        if fresh:
            workspace.clear()
        if config.prepare:
            await ensure_prepared(
                config.prepare, folder=folder, work=workspace.folder, seed=config.seed, progress=progress
            )
        splits = load_splits(config.dataset, folders=(folder, workspace.folder), name=config.name)
        check_tuning(config, splits)
        set_role_map(config.agents)
        async with coterie.connect(config.store or str(workspace.store_path)) as store:
            run, resumed = await open_run(store, workspace, config, app_spec)
            if run.state is RunState.SUCCEEDED:
                progress.note(f"Run {run.id} is finished already; --fresh starts a new one.")
                return run
            await store.add_tasks([task for tasks in splits.values() for task in tasks])
            next_step = max(workspace.saved_steps(), default=0) + 1
            facts = RunFacts(run.id, config.name, run.config, workspace.folder, next_step)
            sinks = await open_sinks(config.metrics, facts, progress)
            backend = make_backend(config, workspace, folder)
            job = Job(config, run.id, store, backend, workspace, progress, splits, verifier, sinks)

            def played_by(played: Run) -> AbstractAsyncContextManager[None]:
                if function is not None:
                    return runner_here(store, function, played, config.runner)
                url = str(config.store)
                return runners_elsewhere(store, played, config.runner, app=app_spec, url=url, progress=progress)

            try:
                async with played_by(run):
                    await _train(job, estimate, credit, played_by, folder, resumed)
                    finished = replace(run, state=RunState.SUCCEEDED, finished_ns=now_ns())
                    await store.save_run(finished)
                    progress.close()
                    return finished
            except (asyncio.CancelledError, KeyboardInterrupt):
                await asyncio.shield(_stop(job, run, RunState.STOPPED, "interrupted"))
                raise
            except StoppedByGuardError as error:
                await _stop(job, run, RunState.STOPPED, str(error))
                raise
            except Exception as error:
                await _stop(job, run, RunState.FAILED, f"{type(error).__name__}: {error}")
                raise
            finally:
                await asyncio.shield(backend.close())
                await asyncio.shield(sinks.close())


async def _train(
    job: Job, estimate: advantages.Estimate, credit: Credit, played_by: PlayedBy, folder: Path, resumed: bool
) -> None:
    """Everything from the first server start to the last measurement."""
    if resumed:
        await cancel_leftovers(job)
    endpoints = Endpoints(job)
    evaluator = Evaluator(job.store, job.run_id, job.progress, tries(job.config.runner))
    validation = Validation(job, evaluator, endpoints)
    collector = AsyncCollector(job) if job.config.training.collection == "async" else SyncCollector(job)
    tuner = Tuner(job, endpoints, played_by, folder)
    watch = Watch(job, endpoints, collector, tuner)
    steps = Steps(job, collector, Learner(job, estimate, credit), endpoints, validation, watch, tuner)
    done = job.workspace.saved_steps()
    test, samples = job.splits["test"], job.config.evaluation.test_samples

    job.progress.stage("starting model servers and trainers")
    await endpoints.serve()
    if done:
        await endpoints.load(done[-1])
    if done and done[-1] > 0:
        job.progress.note(f"resuming after step {done[-1]}")
    await endpoints.tell()
    await evaluator.measure_test("before", test, endpoints.pinned, samples=samples)
    await steps.run(first=(done[-1] if done else 0) + 1)
    await tuner.go_back(await validation.promote_best())
    await evaluator.measure_test("after", test, endpoints.pinned, samples=samples)


async def _stop(job: Job, run: Run, state: RunState, reason: str) -> None:
    """Write down that the run ended early; it can be resumed."""
    await cancel_leftovers(job)
    await job.store.save_run(replace(run, state=state, finished_ns=now_ns()))
    await job.decide("stopped", f"run {run.id}", {"reason": reason})
