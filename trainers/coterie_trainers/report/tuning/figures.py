"""What the report of a tuning run says, as figures: from the store alone, for a finished run or one that goes on.

What decided the run (gains with their intervals, who was dropped and why) is in the run's summary, as it was decided.
The means of all candidates, and what happened to each role's own rewards, are computed from the rollouts.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.assembly import load_episodes
from coterie.store.base import Store
from coterie.vocabulary import (
    JSON,
    Attempt,
    AttemptState,
    Decision,
    Mode,
    Resource,
    ResourceStatus,
    Rollout,
    RolloutState,
    Run,
)
from coterie_trainers.evaluation import team_reward
from coterie_trainers.intervals import Interval, difference_interval, mean_interval
from coterie_trainers.prompts.ablation import AUTHOR as ABLATION
from coterie_trainers.prompts.scoring import role_scores
from coterie_trainers.report.reading import portions, rollouts_of

SPLITS = ("train", "val", "test")
Scores = dict[str, list[float]]
"""Task id → one value a rollout."""


@dataclass(frozen=True, slots=True)
class PromptChange:
    """One tuned prompt, as the run began and as its winner has it."""

    name: str
    role: str
    part: str
    before: Resource
    after: Resource
    """The same version as ``before`` where the winner left it as it was."""
    why: str
    """Why it was changed, as its author says."""
    diff: Sequence[str]
    """Lines of a unified diff of the texts, without its head; empty where nothing was changed."""

    @property
    def changed(self) -> bool:
        """Whether the winner says something else."""
        return self.before.version != self.after.version

    @property
    def in_use(self) -> bool:
        """Whether agents that follow prompts read the winner's version now."""
        return self.after.status is ResourceStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class RoleGain:
    """The rewards that are bound to one role in the test rollouts of the seed and of the winner."""

    role: str
    before: Interval
    after: Interval
    gain: Interval
    """Paired over the tasks that both played."""


@dataclass(frozen=True, slots=True)
class CandidateFigures:
    """What was measured of a candidate."""

    id: str
    author: str
    means: Mapping[str, float]
    """Split → mean score over its rollouts."""
    rollouts: Mapping[str, int]
    """Split → rollouts."""
    fate: str
    """``the winner``, ``as it was``, why it was dropped, or nothing."""


@dataclass(frozen=True, slots=True)
class TuningFigures:
    """Everything that the report shows."""

    run: Run
    optimiser: str
    taken: bool | None
    """Whether the winner took the seed's place; None while the run is not finished."""
    reason: str
    prompts: Sequence[PromptChange]
    test_before: Interval | None
    test_after: Interval | None
    test_gain: Interval | None
    """The winner less the seed, on the same tasks with the same seeds."""
    val_gain: Interval | None
    """The same on validation, where the winner was chosen: too high."""
    roles: Sequence[RoleGain]
    candidates: Sequence[CandidateFigures]
    """Best first: by test, then validation, then train."""
    limits: Mapping[str, float]
    """What the budget limits, and to what."""
    spent: Mapping[str, float]
    reflections: Mapping[str, int]
    """Purpose → questions to the reflecting model."""
    flags: Sequence[str] | None
    """What is suspicious about texts: a prompt that leaks answers, or grows without end. None if nobody has looked."""
    failed: Mapping[str, int]
    """Cause → attempts that failed."""
    warnings: Mapping[str, int]
    decisions: Sequence[Decision]
    rollouts: Mapping[str, int] = field(default_factory=dict)
    """Split → rollouts that ended."""


async def compute_tuning(store: Store, run: Run) -> TuningFigures:
    """The figures of a tuning run as it stands now."""
    summary = run.summary
    rollouts = [one async for one in rollouts_of(store, run.id)]
    ended = [one for one in rollouts if one.state in (RolloutState.SUCCEEDED, RolloutState.DEAD)]
    seen = await _look(store, run, ended, pair=(summary.get("seed"), summary.get("winner")))
    metrics = await store.get_metrics(run.id, stage="search")
    last: Mapping[str, Any] = metrics[-1].values if metrics else {}
    spent = summary.get("spent") or {
        name.removeprefix("spent/"): value for name, value in last.items() if name.startswith("spent/")
    }
    authors = {str(row.values["candidate"]): str(row.values.get("author", "")) for row in metrics}
    return TuningFigures(
        run=run,
        optimiser=str(summary.get("optimiser") or _configured(run)),
        taken=summary.get("taken"),
        reason=str(summary.get("reason", "")),
        prompts=[await _change(store, name, one) for name, one in (summary.get("prompts") or {}).items()],
        test_before=_interval(summary.get("test_before")),
        test_after=_interval(summary.get("test_after")),
        test_gain=_interval(summary.get("test_gain")),
        val_gain=_interval(summary.get("val_gain")),
        roles=_role_gains(seen, summary.get("seed"), summary.get("winner")),
        candidates=_candidates(seen, authors, summary),
        limits={name: limit for name, limit in (run.config.get("budget") or {}).items() if limit is not None},
        spent=spent,
        reflections=summary.get("reflections_by_purpose") or {},
        flags=_flags(summary["flags"]) if "flags" in summary else None,
        failed=Counter(one.cause.value if one.cause else "unknown" for one in seen.failures),
        warnings=seen.warnings,
        decisions=await store.get_decisions(run.id),
        rollouts=Counter(str(one.metadata.get("split", one.mode.value)) for one in ended),
    )


@dataclass(slots=True)
class _Seen:
    """What was found in rollouts, attempts and spans."""

    scores: dict[tuple[str, str], Scores]
    """(candidate, split) → scores."""
    roles: dict[tuple[str, str], Scores]
    """(candidate, role) → the role's own rewards, on test."""
    failures: list[Attempt]
    warnings: Counter[str]


async def _look(store: Store, run: Run, ended: Sequence[Rollout], pair: tuple[str | None, str | None]) -> _Seen:
    reward: Mapping[str, Any] = run.config.get("reward") or {}
    name, low = str(reward.get("name", "reward")), float((reward.get("range") or [0.0])[0])
    seen = _Seen(defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list)), [], Counter())
    for some in portions([one.id for one in ended]):
        rollouts = await store.get_rollouts(some)
        attempts = await store.get_attempts(some)
        for one in (attempt for each in attempts.values() for attempt in each):
            seen.warnings.update(one.warnings)
            if one.state is AttemptState.FAILED:
                seen.failures.append(one)
        good = {id_: each[-1].id for id_, each in attempts.items() if each and each[-1].state is AttemptState.SUCCEEDED}
        rewards = await store.get_rewards(list(good.values()))
        for rollout in rollouts:
            candidate = rollout.metadata.get("candidate")
            if candidate is not None:
                told = good.get(rollout.id)
                value = low if told is None else team_reward(rewards.get(told, ()), name)
                split = str(rollout.metadata.get("split", rollout.mode.value))
                seen.scores[str(candidate), split][rollout.task_id].append(value)
        tests = [one for one in rollouts if one.mode is Mode.TEST and one.metadata.get("candidate") in pair]
        candidates = {one.id: str(one.metadata["candidate"]) for one in tests}
        for episode in await load_episodes(store, list(candidates)):
            for role, value in role_scores(episode).items():
                seen.roles[candidates[episode.rollout_id], role][episode.task_id].append(value)
    return seen


async def _change(store: Store, name: str, one: Mapping[str, Any]) -> PromptChange:
    before, after = [await store.get_resource(name, int(one[which])) for which in ("seed", "winner")]
    texts = [str(each.content["text"]).splitlines() for each in (before, after)]
    diff = list(difflib.unified_diff(texts[0], texts[1], lineterm=""))[2:]
    return PromptChange(name, str(one["role"]), str(one["part"]), before, after, str(one.get("why", "")), diff)


def _role_gains(seen: _Seen, seed: str | None, winner: str | None) -> list[RoleGain]:
    found = []
    for role in sorted({role for _, role in seen.roles}):
        before, after = seen.roles.get((str(seed), role), {}), seen.roles.get((str(winner), role), {})
        both = before.keys() & after.keys()
        if both and seed != winner:
            pairs = [{task: scores[task] for task in both} for scores in (before, after)]
            found.append(
                RoleGain(
                    role, mean_interval(pairs[0]), mean_interval(pairs[1]), difference_interval(pairs[0], pairs[1])
                )
            )
    return found


def _candidates(seen: _Seen, authors: Mapping[str, str], summary: Mapping[str, Any]) -> list[CandidateFigures]:
    dropped: Mapping[str, Any] = summary.get("dropped") or {}
    found = []
    for id_ in dict.fromkeys(candidate for candidate, _ in seen.scores):
        if authors.get(id_) == ABLATION:
            continue  # nobody proposed it: it measures what a change of the winner adds
        values = {
            split: [value for each in seen.scores[id_, split].values() for value in each]
            for split in SPLITS
            if (id_, split) in seen.scores
        }
        fate = "as it was" if id_ == summary.get("seed") else str(dropped.get(id_, ""))
        found.append(
            CandidateFigures(
                id_,
                authors.get(id_, ""),
                means={split: sum(each) / len(each) for split, each in values.items()},
                rollouts={split: len(each) for split, each in values.items()},
                fate="the winner" if id_ == summary.get("winner") and id_ != summary.get("seed") else fate,
            )
        )
    worst = float("-inf")
    return sorted(found, key=lambda one: [one.means.get(split, worst) for split in reversed(SPLITS)], reverse=True)


def _configured(run: Run) -> str:
    named = run.config.get("optimiser", "")
    return str(named.get("name", "")) if isinstance(named, Mapping) else str(named)


def _interval(found: Mapping[str, Any] | None) -> Interval | None:
    return None if found is None else Interval(**found)


def _flags(found: JSON) -> list[str]:
    """As lines, whether they were written down by prompt or as they are."""
    if isinstance(found, Mapping):
        return [f"{name}: {line}" for name, each in found.items() for line in _flags(each)]
    if isinstance(found, str):
        return [found]
    return [line for each in found or () for line in _flags(each)]
