"""One tuning run from its opening to its finish: the way in is ``optimise``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import coterie
from coterie.apps import let_clients_be_made
from coterie.errors import ConfigError
from coterie.roles import set_role_map
from coterie.rollouts import RolloutFunction
from coterie.store.base import Store
from coterie.vocabulary import JSON, Decision, Mode, ResourceStatus, Run, RunState, Task, now_ns
from coterie_trainers.datasets import load_splits
from coterie_trainers.intervals import Interval
from coterie_trainers.progress import Progress
from coterie_trainers.prompts import optimisers
from coterie_trainers.prompts.ablation import gains_by_prompt
from coterie_trainers.prompts.beginning import (
    FIRST_ROLLOUTS,
    Beginning,
    check_roles,
    complete,
    found_without_rollouts,
    remember,
    remembered,
)
from coterie_trainers.prompts.budget import Ledger, told
from coterie_trainers.prompts.candidates import Versions
from coterie_trainers.prompts.choosing import Choice, choose, interval_json
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.costs import Costs
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.playing import Played, Playing
from coterie_trainers.prompts.reflecting import Reflector
from coterie_trainers.prompts.search import Search, rollout_of
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Optimiser
from coterie_trainers.run_opening import open_run
from coterie_trainers.runners import runner_here, runners_elsewhere
from coterie_trainers.sinks.sink import RunFacts
from coterie_trainers.sinks.sinks import Sinks, check_sinks, open_sinks
from coterie_trainers.team import load_team
from coterie_trainers.workspace import Workspace

AS_IT_IS = "as it is"
"""In place of a candidate's id: the team with nothing pinned but what the run was given."""
FIRST_ROLLOUTS_KEY = "first rollouts"
MAY_CHANGE = ("budget", "metrics", "prices", "reflection", "reward", "runner")
"""Settings that a run may go on with others of."""


async def optimise(
    app: str | RolloutFunction[..., Any],
    config: OptimizeConfig,
    *,
    folder: Path,
    work: Path,
    progress: Progress,
    fresh: bool = False,
    optimiser: Optimiser | None = None,
    pinned: Mapping[str, int] | None = None,
) -> Run:
    """Search for better prompts of a team; gives the finished run. One that was cut off in ``work`` is resumed.

    The winner's prompts become active if their gain is shown (``selection.gate``); else the prompts stay as they are.

    Args:
        app: The rollout function, as ``app.py:team`` or as it is.
        config: What to tune, on what, and within which budget.
        folder: Where the app and relative paths are looked for: the config file's folder.
        work: Where everything is written.
        progress: Is told what happens.
        fresh: Forget what ``work`` holds and start anew.
        optimiser: In place of the one that the configuration names.
        pinned: Resources that every rollout is pinned to besides, such as the endpoints of trained policies.

    Raises:
        ConfigError: the app, the data or a setting is wrong, or ``work`` holds a run of another configuration.
        RewardError: a reward is missing or outside of its declared range.
        BackendError: the reflecting model cannot be asked.
    """
    let_clients_be_made()
    here = config.runner.where == "here"
    function = app if isinstance(app, RolloutFunction) else load_team(app, folder=folder) if here else None
    app_spec = app if isinstance(app, str) else app.name
    search_with = optimiser or optimisers.get(config.optimiser_name, config.optimiser_settings)
    optimisers.check_model(search_with, config.reflection)
    check_sinks(config.metrics)
    with Workspace(work) as workspace:
        if fresh:
            workspace.clear()
        splits = load_splits(config.dataset, folders=(folder, workspace.folder), name=config.name)
        check_budget(config, splits)
        set_role_map(config.agents)
        async with coterie.connect(config.store or str(workspace.store_path)) as store:
            run, _ = await open_run(store, workspace, config, app_spec, kind="optimize", may_change=MAY_CHANGE)
            if run.state is RunState.SUCCEEDED:
                progress.note(f"Run {run.id} is finished already; --fresh starts a new one.")
                return run
            await store.add_tasks([task for tasks in splits.values() for task in tasks])
            sinks = await open_sinks(
                config.metrics, RunFacts(run.id, config.name, run.config, workspace.folder), progress
            )
            job = PromptJob(config, run, store, splits, folder, progress, sinks, dict(pinned or {}))
            try:
                async with (
                    runner_here(store, function, run, config.runner)
                    if function is not None
                    else runners_elsewhere(
                        store, run, config.runner, app=app_spec, url=str(config.store), progress=progress
                    )
                ):
                    with Journal(workspace.journal) as journal:
                        summary = await search_prompts(job, journal, search_with)
                finished = replace(run, state=RunState.SUCCEEDED, finished_ns=now_ns(), summary=summary)
                await store.save_run(finished)
                return finished
            except (asyncio.CancelledError, KeyboardInterrupt):
                await asyncio.shield(_stop(job, RunState.STOPPED, "interrupted"))
                raise
            except Exception as error:
                await _stop(job, RunState.FAILED, f"{type(error).__name__}: {error}")
                raise
            finally:
                progress.close()
                await asyncio.shield(sinks.close())


def check_budget(config: OptimizeConfig, splits: Mapping[str, Sequence[Task]]) -> None:
    """Refuse a budget of rollouts that does not pay for measuring the result.

    Raises:
        ConfigError: says what it must pay for.
    """
    limit = config.budget.rollouts
    val, test = _validation_rollouts(config, splits), _test_rollouts(config, splits)
    if limit is not None and limit <= 2 * val + test:
        raise ConfigError(
            f"budget.rollouts = {limit} leaves nothing for the search: {val} go to the prompts as they are on validation and {val} "
            f"to a winner, and {test} to both on test. Raise it, or lower selection.samples, selection.test_samples or the "
            "number of tasks ('limit' in the dataset)."
        )


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One run and what it works with."""

    config: OptimizeConfig
    run: Run
    store: Store
    splits: Mapping[str, Sequence[Task]]
    folder: Path
    progress: Progress
    sinks: Sinks
    pinned: Mapping[str, int]


async def search_prompts(job: PromptJob, journal: Journal, optimiser: Optimiser) -> Mapping[str, JSON]:
    """Everything from the first rollout to the decision; gives the run's summary."""
    config, progress = job.config, job.progress
    ledger = Ledger(config.budget, seconds_before=float((journal.get("seconds") or {}).get("seconds", 0.0)))
    costs = Costs(config.prices, must_have_prices=config.budget.money is not None)
    async with (
        Reflector(config.reflection, ledger, journal) as reflector,
        Playing(job.store, ledger, costs, run_id=job.run.id, at_once=config.runner.concurrency) as playing,
    ):
        beginning = await _beginning(job, journal, ledger, playing)
        versions = Versions(job.store, beginning.prompts)
        await versions.load()
        await _publish_seed(job, versions, beginning.seed)
        async with Search(
            config,
            job.run.id,
            job.store,
            job.splits,
            playing,
            reflector,
            ledger,
            journal,
            progress,
            prompts=beginning.prompts,
            seed=beginning.seed,
            versions=versions,
            pinned=job.pinned,
            sinks=job.sinks,
        ) as search:
            await _measure_seed(job, search)
            name = config.optimiser_name
            progress.stage(f"searching: {name}", config.budget.rollouts)
            search.put_aside(finalists=1, rest=_test_rollouts(config, job.splits))
            finalists = await _finalists_of(optimiser, search)
            progress.note(f"{name} gives {len(finalists)} candidates; spent so far: {told(ledger.figures())}")
            search.put_aside(finalists=0, rest=_test_rollouts(config, job.splits))
            choice = await choose(search, finalists)
            gains = await gains_by_prompt(search, choice)
            await _take(job, versions, choice)
            for line in _remarks(costs, config):
                progress.warn(line)
            return _summary(config, versions, choice, gains, ledger, reflector)


async def _beginning(job: PromptJob, journal: Journal, ledger: Ledger, playing: Playing) -> Beginning:
    """The prompts that are tuned, with their texts; the same in every process of the run."""
    beginning, found = remembered(journal), None
    if beginning is None:
        found = await found_without_rollouts(job.config, job.store, job.folder, job.progress)
        if not found.needs_rollouts:
            return remember(journal, found.beginning())
    elif not journal.get(FIRST_ROLLOUTS_KEY):
        return beginning
    tasks = job.splits["train"][:FIRST_ROLLOUTS]
    job.progress.stage("seeing what the roles send", len(tasks))
    journal.write(FIRST_ROLLOUTS_KEY, {"tasks": [task.id for task in tasks]})
    ledger.take_rollouts(len(tasks))
    rollouts = [rollout_of(job.config, job.run.id, AS_IT_IS, task, 0, Mode.VAL, job.pinned) for task in tasks]
    played = [one for one in await playing.play(rollouts) if isinstance(one, Played)]
    if found is not None:
        beginning = remember(journal, complete(found, played, job.progress))
    assert beginning is not None
    return beginning


async def _publish_seed(job: PromptJob, versions: Versions, seed: Candidate) -> None:
    """Publish what the run begins with: as active where nothing else is, so that nothing changes for who reads it now."""
    note = f"what run {job.run.id} began with"
    for name in seed.texts:
        there = await job.store.list_resources(name=name, status=ResourceStatus.ACTIVE)
        status = ResourceStatus.CANDIDATE if there else ResourceStatus.ACTIVE
        await versions.publish(seed, only=name, note=note, status=status)


async def _measure_seed(job: PromptJob, search: Search) -> None:
    """The seed on validation: whatever is wrong with team, prompts or rewards shows here, before anything is searched."""
    samples = job.config.selection.samples
    job.progress.stage("the prompts as they are, on validation", len(search.val) * samples)
    trials = await search.measure(search.seed, search.val, samples=samples, mode=Mode.VAL)
    failures = [trial for trial in trials if trial.failure is not None]
    if len(failures) == len(trials):
        raise ConfigError(
            f"All {len(trials)} rollouts of the prompts as they are failed, so there is nothing to learn from. The first, "
            f"{failures[0].rollout_id}: {failures[0].failure}"
        )
    if failures:
        job.progress.warn(f"{len(failures)} of {len(trials)} rollouts failed; the first: {failures[0].failure}")
    episodes = await search.episodes([trial for trial in trials if trial.failure is None])
    check_roles(search.prompts, episodes, job.progress)


async def _finalists_of(optimiser: Optimiser, search: Search) -> Sequence[Candidate]:
    try:
        finalists = list(await optimiser(search))
    except BudgetSpentError as error:
        # An optimiser should give what it has; one that does not costs no more than its own findings.
        search.progress.warn(f"The optimiser ended with the budget and gave no candidate: {error}")
        return []
    for candidate in finalists:
        search.versions.check(candidate)
    return finalists


async def _take(job: PromptJob, versions: Versions, choice: Choice) -> None:
    """Write down the decision, and make the winner active if it is taken."""
    store, run_id = job.store, job.run.id
    seed_versions, winner_versions = await versions.publish(choice.seed), await versions.publish(choice.winner)
    changed = {name: version for name, version in winner_versions.items() if version != seed_versions[name]}
    for candidate in (choice.seed, *choice.finalists):
        scores = _scores(candidate, choice)
        for name, version in (await versions.publish(candidate)).items():
            if candidate.id in (choice.seed.id, choice.winner.id) or version not in (
                seed_versions[name],
                changed.get(name),
            ):
                await store.mark(name, version, scores={run_id: scores})
    if choice.taken:
        for name, version in changed.items():
            await store.mark(name, version, ResourceStatus.ACTIVE)
    kind = "promoted" if choice.taken else "kept"
    if kind not in {each.kind for each in await store.get_decisions(run_id)}:
        evidence: dict[str, JSON] = {
            "reason": choice.reason,
            "candidate": choice.winner.id,
            "versions": {name: [seed_versions[name], version] for name, version in changed.items()},
            "why": dict(choice.winner.why),
            **_measured(choice),
        }
        await store.add_decision(Decision(run_id, kind, f"prompts {', '.join(changed or versions.prompts)}", evidence))
    if choice.taken:
        job.progress.note(f"{', '.join(changed)}: the winner is active now. {choice.reason}")
        return
    there = ", ".join(f"{name} version {version}" for name, version in changed.items())
    job.progress.warn(
        f"The prompts stay as they are: {choice.reason}."
        + (f" The winner is kept as a candidate ({there}); `coterie prompts` can make it active." if changed else "")
    )


def _scores(candidate: Candidate, choice: Choice) -> dict[str, JSON]:
    """What the run measured of a candidate, as the versions of its prompts carry it."""
    val = [score for scores in choice.race.scores[candidate.id].values() for score in scores]
    found: dict[str, JSON] = {"candidate": candidate.id, "val": fmean(val) if val else None, "val_rollouts": len(val)}
    test = choice.test_before if candidate.id == choice.seed.id else choice.test_after
    if test is not None and candidate.id in (choice.seed.id, choice.winner.id):
        found |= {"test": test.value, "test_rollouts": test.rollouts}
    return found


def _measured(choice: Choice) -> dict[str, JSON]:
    """The figures behind a choice."""
    return {
        "val": {candidate.id: _scores(candidate, choice)["val"] for candidate in (choice.seed, *choice.finalists)},
        "val_gain": interval_json(choice.val.interval if choice.val else None),
        "test_before": interval_json(choice.test_before),
        "test_after": interval_json(choice.test_after),
        "test_gain": interval_json(choice.test.interval if choice.test else None),
        "dropped": {out.candidate: out.reason for out in choice.race.dropped},
        "flags": {candidate: [str(flag) for flag in flags] for candidate, flags in choice.flags.items()},
    }


def _summary(
    config: OptimizeConfig,
    versions: Versions,
    choice: Choice,
    gains: Mapping[str, Interval],
    ledger: Ledger,
    reflector: Reflector,
) -> dict[str, JSON]:
    """The results, as the report has them."""
    seed_versions, winner_versions = versions.versions_of(choice.seed), versions.versions_of(choice.winner)
    return {
        "optimiser": config.optimiser_name,
        "taken": choice.taken,
        "reason": choice.reason,
        "seed": choice.seed.id,
        "winner": choice.winner.id,
        "prompts": {
            name: {
                "role": prompt.role,
                "part": prompt.part,
                "seed": seed_versions[name],
                "winner": winner_versions[name],
                "why": choice.winner.why.get(name, ""),
                "gain": interval_json(gains.get(name)),
            }
            for name, prompt in versions.prompts.items()
        },
        **_measured(choice),
        "budget": config.budget.model_dump(mode="json"),
        "spent": dict(ledger.figures()),
        "reflections_by_purpose": dict(reflector.by_purpose),
    }


def _remarks(costs: Costs, config: OptimizeConfig) -> Sequence[str]:
    found = []
    if costs.estimated and config.budget.tokens is not None:
        found.append(
            f"{costs.estimated} calls reported no token counts; they were estimated from the length of their texts."
        )
    if costs.unpriced and config.prices:
        found.append(f"Without a price, and counted as free: {', '.join(sorted(costs.unpriced))}.")
    return found


def _validation_rollouts(config: OptimizeConfig, splits: Mapping[str, Sequence[Task]]) -> int:
    return len(splits["val"]) * config.selection.samples


def _test_rollouts(config: OptimizeConfig, splits: Mapping[str, Sequence[Task]]) -> int:
    return 2 * len(splits["test"]) * config.selection.test_samples


async def _stop(job: PromptJob, state: RunState, reason: str) -> None:
    """Write down that the run ended early; it can be resumed."""
    await job.store.save_run(replace(job.run, state=state, finished_ns=now_ns()))
    await job.store.add_decision(Decision(job.run.id, "stopped", f"run {job.run.id}", {"reason": reason}))
