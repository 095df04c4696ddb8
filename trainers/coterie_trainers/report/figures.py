"""What the report says, as figures: computed from the store alone, for a finished run or one that goes on.

A rollout succeeded when its team reward is at least ``SUCCESS``; one whose attempts all failed counts as 0. Intervals
are bootstrap intervals over tasks (``intervals.py``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    Decision,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    Rollout,
    RolloutState,
    Run,
    Task,
)
from coterie_trainers.evaluation import team_reward
from coterie_trainers.intervals import Interval, difference_interval, mean_interval
from coterie_trainers.report.audits import ShownAudit, newest_audits
from coterie_trainers.report.pairs import EpisodePair, choose_pairs
from coterie_trainers.report.reading import portions, rollouts_of

SUCCESS = 1.0
"""The team reward from which on a rollout counts as a success."""
BEFORE, AFTER = "before", "after"
SAMPLED, GREEDY = "sampled", "greedy"

Values = Mapping[str, Sequence[float]]
"""Task id → one value a rollout."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure on the test split, before and after training; None where it was not measured (yet)."""

    before: Interval | None
    after: Interval | None
    difference: Interval | None
    """After less before, on the tasks that both measured."""


@dataclass(frozen=True, slots=True)
class FamilyFigures:
    """Sampled success on the test tasks of one family."""

    family: str
    tasks: int
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class RoleFigures:
    """One role in the sampled test rollouts, and its calls in the whole run."""

    role: str
    reward_before: float | None
    """The mean of the rewards bound to the role, if there are any."""
    reward_after: float | None
    calls_before: float | None
    """Calls a rollout."""
    calls_after: float | None
    calls: int
    """Calls of the whole run: training, validation and test."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Success after so many steps."""

    step: int
    success: float


@dataclass(frozen=True, slots=True)
class Curve:
    """How success went."""

    train: Sequence[CurvePoint]
    """Of each step's own rollouts."""
    val: Sequence[CurvePoint]
    """On the validation split."""


@dataclass(frozen=True, slots=True)
class GuardWord:
    """What the guard said about one thing in the course of a run."""

    about: str
    """The rule and whom it is about."""
    reason: str
    """As it was said last."""
    step: int
    """The step at which it was said last."""
    steps: int
    """At how many steps it was said."""


@dataclass(frozen=True, slots=True)
class Health:
    """What went wrong, and how exact the training was."""

    max_mismatch: float | None
    """The largest absolute difference of a token's log-probability between rollout and trainer, over all steps that trained
    on turns of the present weights alone: elsewhere the weights differ, and so must the log-probabilities."""
    max_mismatch_kl: float | None
    max_staleness: int
    """How many policy versions old a turn was, at most, when it was trained on."""
    trainable_calls_missing: int
    """Calls of training rollouts that came without token ids or log-probabilities."""
    warnings: Mapping[str, int]
    """What the runner warned of, and how often."""
    failed_attempts: Mapping[str, int]
    """Cause → attempts."""
    failures: Sequence[str]
    """The last line of the first few different errors."""
    steps_without_rows: int
    """Steps that had nothing to learn from."""
    guard: Sequence[GuardWord] = ()
    """What the guard said, in the order in which it was said first."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What it took."""

    train_seconds: float
    """Time in training steps: rollouts, updates, weight sync and checkpoints."""
    seconds_by_part: Mapping[str, float]
    wall_seconds: float
    """From the run's start to its end, or to its last figure, pauses included."""
    steps: int
    rollouts: Mapping[str, int]
    """Mode → rollouts that ended."""
    calls_by_role: Mapping[str, int]
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The weights that a run kept for a policy."""

    policy: str
    path: str
    """An ordinary Hugging Face folder."""
    step: int | None
    """The step that they are of."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a report shows."""

    run: Run
    decodings: Mapping[str, Measured]
    """``sampled`` as the team runs, ``greedy`` at temperature 0."""
    families: Sequence[FamilyFigures]
    roles: Sequence[RoleFigures]
    curve: Curve
    pairs: Sequence[EpisodePair]
    health: Health
    costs: Costs
    models: Sequence[TrainedModel]
    """The weights that were kept, a policy each; empty until the run has ended."""
    decisions: Sequence[Decision]
    """What was promoted or stopped, and on what evidence."""
    audits: Sequence[ShownAudit]
    """Which role or turn made the difference, where somebody asked."""


async def compute_figures(store: Store, run_id: str) -> Figures:
    """The figures of a run as it stands now.

    Raises:
        NotFoundError: the store has no such run.
    """
    run = await store.get_run(run_id)
    decisions = await store.get_decisions(run_id)
    rollouts = [rollout async for rollout in rollouts_of(store, run_id)]
    ended = [rollout for rollout in rollouts if rollout.state in (RolloutState.SUCCEEDED, RolloutState.DEAD)]
    tests = [rollout for rollout in ended if rollout.mode is Mode.TEST]
    metrics = await store.get_metrics(run_id)
    seen = await _look(store, ended, tests)
    tasks = {task.id: task for task in await store.get_tasks(sorted({rollout.task_id for rollout in tests}))}
    steps = [row for row in metrics if row.stage == "train"]
    calls = _calls_of_steps(steps) + seen.calls
    return Figures(
        run=run,
        decodings={decoding: _measured(seen.scores, decoding) for decoding in (SAMPLED, GREEDY)},
        families=_families(seen.scores, tasks),
        roles=_roles(seen, tests, calls),
        curve=Curve(train=_points(steps), val=_points(row for row in metrics if row.stage == "val")),
        pairs=choose_pairs(tasks, seen.firsts, success=SUCCESS),
        health=_health(steps, seen.attempts, [row for row in metrics if row.stage == "guard"]),
        costs=_costs(run, steps, metrics, ended, calls),
        models=[_model(weights) for weights in await _weights(store, run_id)],
        decisions=decisions,
        audits=newest_audits(decisions),
    )


@dataclass(slots=True)
class _Seen:
    """What was found in rollouts, attempts and spans."""

    scores: dict[tuple[str, str], dict[str, list[float]]]
    """(evaluation, decoding) → task id → success (1.0 or 0.0) a rollout."""
    firsts: dict[tuple[str, str], dict[str, Episode]]
    """(evaluation, decoding) → task id → the first episode."""
    calls: Counter[str]
    """Role → calls of validation and test."""
    test_calls: dict[str, Counter[str]]
    """Evaluation → role → calls of sampled rollouts."""
    role_rewards: dict[str, dict[str, list[float]]]
    """Evaluation → role → rewards in sampled rollouts."""
    attempts: list[Attempt]


async def _look(store: Store, ended: Sequence[Rollout], tests: Sequence[Rollout]) -> _Seen:
    seen = _Seen(
        scores=defaultdict(lambda: defaultdict(list)),
        firsts=defaultdict(dict),
        calls=Counter(),
        test_calls=defaultdict(Counter),
        role_rewards=defaultdict(lambda: defaultdict(list)),
        attempts=[],
    )
    # Audits say what became of changed replays: a failure there is none of the run.
    for ids in portions([rollout.id for rollout in ended if rollout.mode is not Mode.AUDIT]):
        for attempts in (await store.get_attempts(ids)).values():
            seen.attempts += attempts
    labels = {rollout.id: _label(rollout) for rollout in tests}
    task_of = {rollout.id: rollout.task_id for rollout in tests}
    measured = [rollout.id for rollout in ended if rollout.mode in (Mode.TEST, Mode.VAL)]
    for ids in portions(measured):
        episodes = {episode.rollout_id: episode for episode in await load_episodes(store, ids)}
        for id_ in ids:
            episode = episodes.get(id_)
            if episode is not None:
                seen.calls.update(turn.role for turn in episode.turns)
            if id_ in labels:
                _note_test(seen, labels[id_], task_of[id_], episode)
    return seen


def _note_test(seen: _Seen, label: tuple[str, str], task_id: str, episode: Episode | None) -> None:
    evaluation, decoding = label
    won = episode is not None and team_reward(episode.rewards) >= SUCCESS
    seen.scores[label][task_id].append(float(won))
    if episode is None:
        return
    seen.firsts[label].setdefault(task_id, episode)
    if decoding == SAMPLED:
        seen.test_calls[evaluation].update(turn.role for turn in episode.turns)
        for reward in episode.rewards:
            if reward.role is not None and reward.agent_path is None and reward.call_id is None:
                seen.role_rewards[evaluation][reward.role].append(reward.value)


def _label(rollout: Rollout) -> tuple[str, str]:
    return str(rollout.metadata.get("evaluation")), str(rollout.metadata.get("decoding", SAMPLED))


def _measured(scores: Mapping[tuple[str, str], Values], decoding: str) -> Measured:
    before = scores.get((BEFORE, decoding), {})
    after = scores.get((AFTER, decoding), {})
    both = before.keys() & after.keys()
    return Measured(
        before=mean_interval(before) if before else None,
        after=mean_interval(after) if after else None,
        difference=difference_interval(_only(before, both), _only(after, both)) if both else None,
    )


def _families(scores: Mapping[tuple[str, str], Values], tasks: Mapping[str, Task]) -> list[FamilyFigures]:
    """By difficulty where tasks have one, then by name."""
    members: dict[str, list[Task]] = defaultdict(list)
    for task in tasks.values():
        if "family" in task.metadata:
            members[str(task.metadata["family"])].append(task)

    def difficulty(family: str) -> tuple[float, str]:
        values = [task.metadata.get("difficulty") for task in members[family]]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return (sum(numbers) / len(numbers) if numbers else 0.0), family

    return [
        FamilyFigures(
            family,
            len(members[family]),
            before=_mean_of(scores.get((BEFORE, SAMPLED), {}), {task.id for task in members[family]}),
            after=_mean_of(scores.get((AFTER, SAMPLED), {}), {task.id for task in members[family]}),
        )
        for family in sorted(members, key=difficulty)
    ]


def _roles(seen: _Seen, tests: Sequence[Rollout], calls: Counter[str]) -> list[RoleFigures]:
    made = Counter(evaluation for evaluation, decoding in map(_label, tests) if decoding == SAMPLED)

    def reward(evaluation: str, role: str) -> float | None:
        return _mean(seen.role_rewards[evaluation][role])

    def calls_each(evaluation: str, role: str) -> float | None:
        return seen.test_calls[evaluation][role] / made[evaluation] if made[evaluation] else None

    return [
        RoleFigures(
            role,
            reward_before=reward(BEFORE, role),
            reward_after=reward(AFTER, role),
            calls_before=calls_each(BEFORE, role),
            calls_after=calls_each(AFTER, role),
            calls=count,
        )
        for role, count in sorted(calls.items())
    ]


def _points(rows: Iterable[Metrics]) -> list[CurvePoint]:
    return [
        CurvePoint(row.step, float(success))
        for row in rows
        if isinstance(success := row.values.get("success"), int | float)
    ]


def _health(steps: Sequence[Metrics], attempts: Sequence[Attempt], guard: Sequence[Metrics]) -> Health:
    failed = [attempt for attempt in attempts if attempt.state is AttemptState.FAILED]
    fresh = [row for row in steps if not row.values.get("staleness_max")]
    errors = (attempt.error.strip().splitlines()[-1] for attempt in failed if attempt.error and attempt.error.strip())
    return Health(
        max_mismatch=max(_values_named(fresh, "mismatch_max"), default=None),
        max_mismatch_kl=max(_values_named(fresh, "mismatch_kl"), default=None),
        max_staleness=int(max(_values_named(steps, "staleness_max"), default=0)),
        trainable_calls_missing=int(sum(_values_named(steps, "untrainable"))),
        warnings=Counter(warning for attempt in attempts for warning in attempt.warnings),
        failed_attempts=Counter(attempt.cause.value if attempt.cause else "unknown" for attempt in failed),
        failures=list(dict.fromkeys(errors))[:3],
        steps_without_rows=sum(1 for row in steps if row.values.get("rows") == 0),
        guard=_guard_words(guard),
    )


def _guard_words(rows: Sequence[Metrics]) -> list[GuardWord]:
    said: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rows:
        for about, reason in row.values.items():
            if about != "level":
                said[about].append((row.step, str(reason)))
    return [GuardWord(about, words[-1][1], words[-1][0], len(words)) for about, words in said.items()]


def _costs(
    run: Run, steps: Sequence[Metrics], metrics: Sequence[Metrics], ended: Sequence[Rollout], calls: Counter[str]
) -> Costs:
    parts = {
        part: sum(_values_named(steps, f"{part}_seconds")) for part in ("rollout", "credit", "train", "sync", "save")
    }
    whole = sum(_values_named(steps, "step_seconds"))
    last_ns = run.finished_ns or max((row.time_ns for row in metrics), default=run.created_ns)
    return Costs(
        train_seconds=whole or sum(parts.values()),
        seconds_by_part={part: seconds for part, seconds in parts.items() if seconds},
        wall_seconds=(last_ns - run.created_ns) / 1e9,
        steps=len(steps),
        rollouts=Counter(rollout.mode.value for rollout in ended),
        calls_by_role=dict(sorted(calls.items())),
        trained_tokens=int(sum(_values_named(steps, "tokens"))),
    )


async def _weights(store: Store, run_id: str) -> Sequence[Resource]:
    found = await store.list_resources(kind=ResourceKind.WEIGHTS)
    return [resource for resource in found if resource.author == run_id]


def _model(weights: Resource) -> TrainedModel:
    step = weights.content.get("step")
    return TrainedModel(
        policy=weights.name.removeprefix("weights/"),
        path=str(weights.content.get("path", "")),
        step=step if isinstance(step, int) else None,
    )


def _calls_of_steps(steps: Sequence[Metrics]) -> Counter[str]:
    calls: Counter[str] = Counter()
    for row in steps:
        for name, value in row.values.items():
            if name.startswith("calls/") and isinstance(value, int | float):
                calls[name.removeprefix("calls/")] += int(value)
    return calls


def _values_named(rows: Sequence[Metrics], name: str) -> list[float]:
    """A figure's values, those of single policies (``coder/grad_norm``) among them."""
    return [
        float(value)
        for row in rows
        for key, value in row.values.items()
        if (key == name or key.endswith(f"/{name}")) and isinstance(value, int | float)
    ]


def _only(values: Values, tasks: Collection[str]) -> Values:
    return {task: values[task] for task in tasks}


def _mean_of(values: Values, tasks: Collection[str]) -> float | None:
    return _mean([value for task in tasks for value in values.get(task, ())])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
