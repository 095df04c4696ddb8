"""Auditing a run of ``coterie train``: its final policies are served again, a runner plays the replays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import coterie
from coterie.apps import let_clients_be_made
from coterie.errors import ConfigError
from coterie.roles import set_role_map
from coterie.store.base import Store
from coterie.vocabulary import Mode, Rollout, Run
from coterie_trainers.audits.audit import Audit, audit
from coterie_trainers.audits.findings import Method
from coterie_trainers.audits.playing import withdraw_unfinished
from coterie_trainers.audits.sampling import choose_rollouts
from coterie_trainers.config import TrainConfig
from coterie_trainers.evaluation import Evaluator
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.opening import make_backend
from coterie_trainers.loop.publishing import Endpoints
from coterie_trainers.loop.validating import Validation
from coterie_trainers.progress import Progress
from coterie_trainers.runners import runner_here, runners_elsewhere, tries
from coterie_trainers.team import load_team
from coterie_trainers.workspace import Workspace


async def audit_run(
    app_spec: str,
    config: TrainConfig,
    *,
    folder: Path,
    work: Path,
    progress: Progress,
    method: Method,
    sample: int,
    replays: int,
    run_id: str | None = None,
    mode: Mode | None = None,
    mask_texts: Mapping[str, str] | None = None,
    as_pinned: bool = False,
) -> Audit:
    """Audit a sample of a run's rollouts. One that was cut off goes on with what is missing.

    Args:
        app_spec: The rollout function, as ``app.py:team``.
        config: The configuration that the run was made with.
        folder: Where the app is looked for: the config file's folder.
        work: The run's work folder.
        progress: Is told what happens.
        method: What is changed.
        sample: How many rollouts.
        replays: How many replays a role (mask) or a call (replay).
        run_id: The run; that of the work folder by default.
        mode: Of which mode the rollouts are; see ``choose_rollouts``.
        mask_texts: Role → what it says when it is masked.
        as_pinned: Call models where the rollouts called them, and serve none: they still run.

    Raises:
        ConfigError: the app does not load, there is no such run, or it has no rollout to audit.
        BackendError: a model server failed.
        AuditError: no rollout could be audited, or no replay is evidence.
    """
    let_clients_be_made()
    function = load_team(app_spec, folder=folder) if config.runner.where == "here" else None
    with _held(work) as workspace:
        set_role_map(config.agents)
        async with coterie.connect(config.store or str(workspace.store_path)) as store:
            run = await _the_run(store, workspace, run_id)
            await withdraw_unfinished(store, run.id)
            rollouts = await choose_rollouts(store, run.id, count=sample, mode=mode, seed=config.seed)
            async with (
                _served(config, run, store, workspace, folder, progress, rollouts, as_pinned) as (pinned, answered_by),
                runner_here(store, function, run, config.runner)
                if function is not None
                else runners_elsewhere(
                    store, run, config.runner, app=app_spec, url=str(config.store), progress=progress
                ),
            ):
                return await audit(
                    store,
                    run.id,
                    rollouts,
                    method=method,
                    replays=replays,
                    progress=progress,
                    pinned=pinned,
                    answered_by=answered_by,
                    mask_texts=mask_texts,
                    tries=tries(config.runner),
                )


def _held(work: Path) -> Workspace:
    if not (work / "run").is_file():
        raise ConfigError(f"The folder {work} holds no run. Name the work folder of the run with --out.")
    return Workspace(work)


async def _the_run(store: Store, workspace: Workspace, run_id: str | None) -> Run:
    known = workspace.run_id()
    if known is None or run_id not in (None, known):
        raise ConfigError(
            f"The work folder {workspace.folder} holds run {known}, not {run_id}. Name that run's work folder with --out."
        )
    return await store.get_run(known)


@contextlib.asynccontextmanager
async def _served(
    config: TrainConfig,
    run: Run,
    store: Store,
    workspace: Workspace,
    folder: Path,
    progress: Progress,
    rollouts: Sequence[Rollout],
    as_pinned: bool,
) -> AsyncIterator[tuple[Mapping[str, int] | None, str]]:
    """Serve the policies that made the rollouts within the block; gives the pins that lead to them, and their name."""
    if as_pinned:
        yield None, "as pinned"
        return
    job = Job(config, run.id, store, make_backend(config, workspace, folder), workspace, progress, splits={})
    try:
        step = await _step_to_serve(job, rollouts)
        endpoints = Endpoints(job)
        progress.stage("starting model servers")
        await endpoints.serve()
        if step is not None:
            await endpoints.load(step)
        await endpoints.tell()
        yield endpoints.pinned, f"step {step or 0}"
    finally:
        await asyncio.shield(job.backend.close())


async def _step_to_serve(job: Job, rollouts: Sequence[Rollout]) -> int | None:
    """The checkpoint of the policies that made the rollouts: the promoted one for tests, else the newest."""
    saved = job.workspace.saved_steps()
    if rollouts[0].mode is Mode.TEST:
        evaluator = Evaluator(job.store, job.run_id, job.progress, tries(job.config.runner))
        best = await Validation(job, evaluator, Endpoints(job)).best_step()
        if best in saved:
            return best
    return saved[-1] if saved else None
