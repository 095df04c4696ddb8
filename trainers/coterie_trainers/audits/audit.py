"""An audit from its sample to its decision.

    rollouts → do they repeat? → changed replays → credit of each place in each rollout → findings → metrics, decision

First every rollout is played once with all its answers of then: that asks no model. A program that does not make the same
calls then (a date in a prompt, a search that finds other pages) would be compared with another program; its rollouts are
left out, and it is told why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.errors import AuditError
from coterie.replays import Replay, why_not_repeatable
from coterie.store.base import Store
from coterie.vocabulary import Decision, Rollout
from coterie_trainers.audits.findings import (
    KIND,
    Credited,
    Finding,
    Method,
    as_evidence,
    as_metrics,
    findings_of,
)
from coterie_trainers.audits.mask import mask_replays, role_credit
from coterie_trainers.audits.outcomes import SUCCESS, outcome
from coterie_trainers.audits.playing import Played, Stage, Wanted
from coterie_trainers.audits.replay import turn_credits, turn_replays, turn_weights
from coterie_trainers.progress import Progress


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit did and found."""

    run_id: str
    method: Method
    credits: Sequence[Credited]
    """Of each place in each rollout."""
    rollouts: int
    """That were audited."""
    replays: int
    """That are evidence."""
    asked: int
    """Calls that these sent to a model."""
    answered_by: str
    """The policies that answered them."""
    problems: Mapping[str, int] = field(default_factory=dict)
    """What kept rollouts and replays from being evidence, and how often."""

    @property
    def findings(self) -> list[Finding]:
        """A finding a place, that with the most weight first."""
        return findings_of(self.credits)


async def audit(
    store: Store,
    run_id: str,
    rollouts: Sequence[Rollout],
    *,
    method: Method,
    replays: int,
    progress: Progress,
    pinned: Mapping[str, int] | None = None,
    answered_by: str = "as pinned",
    mask_texts: Mapping[str, str] | None = None,
    tries: Mapping[str, Any] | None = None,
) -> Audit:
    """Audit finished rollouts; somebody must play the run's rollouts meanwhile (``runner_here``, ``coterie run``).

    What is done is kept: the same call again makes only what is missing. One audit of a run at a time: it withdraws
    unfinished replays that an earlier one left.

    Args:
        store: Where the run is.
        run_id: The run that the replays and the result belong to.
        rollouts: What is audited (``choose_rollouts``).
        method: What is changed.
        replays: How many replays a role (mask) or a call (replay).
        progress: Is told what happens.
        pinned: The resources that the replays are pinned to, so that calls reach a server that runs; by default each
            has those of the rollout that it replays.
        answered_by: Names the policies behind ``pinned``, such as ``step 12``.
        mask_texts: Role → what it says when it is masked.
        tries: The fields of a rollout that say how long and how often it is tried.

    Raises:
        AuditError: no rollout could be audited, or no replay is evidence; says why.
    """
    stage = Stage(store, run_id, pinned, answered_by, tries or {}, progress)
    result = await audited(stage, rollouts, method=method, replays=replays, mask_texts=mask_texts)
    await _write(store, result, step=max(rollout.step or 0 for rollout in rollouts))
    for problem, count in result.problems.items():
        progress.warn(f"{count} {problem}")
    return result


async def audited(
    stage: Stage,
    rollouts: Sequence[Rollout],
    *,
    method: Method,
    replays: int,
    mask_texts: Mapping[str, str] | None = None,
) -> Audit:
    """The same on a stage of one's own; nothing but the replays is written.

    Raises:
        AuditError: no rollout could be audited, or no replay is evidence; says why.
    """
    problems = _Problems()
    cases = await _repeatable(stage, rollouts, problems)
    if not cases:
        raise AuditError(f"None of the {len(rollouts)} rollouts can be audited. {problems}")
    plan = [wanted for case in cases for wanted in _plan(case, method, replays, mask_texts or {})]
    played = await stage.play(plan, f"{method} audit of {len(cases)} rollouts")
    for one in played:
        if one.problem is not None:
            problems.note("replays are no evidence", one.problem)
    credited = _credited(cases, method, played)
    if not credited:
        raise AuditError(f"No replay of the {len(cases)} rollouts is evidence. {problems}")
    good = [one for one in played if one.outcome is not None]
    return Audit(
        stage.run_id,
        method,
        credited,
        rollouts=len({one.rollout_id for one in credited}),
        replays=len(good),
        asked=sum(one.asked for one in good),
        answered_by=stage.answered_by,
        problems=problems.counted(),
    )


class _Problems:
    """What kept rollouts and replays from being evidence: the kind, how often, and the first case of it."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def note(self, kind: str, why: str) -> None:
        self._found.setdefault(kind, []).append(why)

    def counted(self) -> dict[str, int]:
        return {f"{kind}; the first: {whys[0]}": len(whys) for kind, whys in self._found.items()}

    def __str__(self) -> str:
        return " ".join(f"{count} {problem}" for problem, count in self.counted().items())


@dataclass(frozen=True, slots=True)
class _Case:
    """A rollout that repeats."""

    rollout: Rollout
    episode: Episode
    outcome: float


async def _repeatable(stage: Stage, rollouts: Sequence[Rollout], problems: _Problems) -> list[_Case]:
    """The rollouts whose program does the same when all its calls get their answers of then."""
    cases = []
    by_id = {rollout.id: rollout for rollout in rollouts}
    for episode in await load_episodes(stage.store, list(by_id)):
        reached, why = outcome(episode.rewards), _why_not(episode)
        if why is None and reached is not None:
            cases.append(_Case(by_id[episode.rollout_id], episode, reached))
        else:
            problems.note("rollouts are left out", f"{episode.rollout_id} {why or 'has no reward'}")
    checks = [
        Wanted(case.rollout, Replay(case.rollout.id, case.episode.attempt_id, len(case.episode.turns)), 0)
        for case in cases
    ]
    kept = []
    for case, check in zip(cases, await stage.play(checks, "do the rollouts repeat?"), strict=True):
        if check.problem is not None:
            problems.note("rollouts are left out, for they do not repeat", check.problem)
            continue
        kept.append(case)
        if check.outcome != case.outcome:
            problems.note(
                "rollouts came to another reward though each call got the same answer (a judge or a tool that draws at "
                "random); they are audited all the same",
                f"{case.rollout.id} came to {case.outcome:g}, and to {check.outcome:g} again",
            )
    return kept


def _why_not(episode: Episode) -> str | None:
    if not episode.turns:
        return "made no call"
    for number, turn in enumerate(episode.turns):
        why = why_not_repeatable(turn)
        if why is not None:
            return f"cannot be repeated: call {number} ({turn.role} {turn.index}) {why}"
    return None


def _plan(case: _Case, method: Method, replays: int, mask_texts: Mapping[str, str]) -> list[Wanted]:
    if method is Method.MASK:
        return mask_replays(case.rollout, case.episode, count=replays, texts=mask_texts)
    return turn_replays(case.rollout, case.episode, count=replays)


def _credited(cases: Sequence[_Case], method: Method, played: Sequence[Played]) -> list[Credited]:
    """The credit of each place in each rollout, as far as there are replays for it."""
    outcomes: dict[tuple[str, str | int], list[float]] = defaultdict(list)
    for one in played:
        if one.outcome is not None:
            replay = one.wanted.replay
            place = replay.frozen if replay.masked_role is None else replay.masked_role
            outcomes[replay.rollout_id, place].append(one.outcome)
    if method is Method.MASK:
        return [
            _one(case, role, None, credit, credit, len(outcomes[case.rollout.id, role]))
            for case in cases
            for role in case.episode.roles
            if (credit := role_credit(case.outcome, outcomes[case.rollout.id, role])) is not None
        ]
    credited = []
    for case in cases:
        replays = [outcomes[case.rollout.id, number] for number in range(len(case.episode.turns))]
        values, weights = turn_credits(case.outcome, replays), turn_weights(case.outcome, replays)
        for turn, credit, weight, siblings in zip(case.episode.turns, values, weights, replays, strict=True):
            if credit is not None and weight is not None:
                credited.append(_one(case, turn.role, turn.index, credit, weight, len(siblings)))
    return credited


def _one(case: _Case, role: str, turn: int | None, credit: float, weight: float, replays: int) -> Credited:
    won = case.outcome >= SUCCESS
    return Credited(case.rollout.id, case.rollout.task_id, won, role, turn, credit, weight, replays)


async def _write(store: Store, result: Audit, *, step: int) -> None:
    """Keep what was found with the run: figures for machines, and a decision with all that it rests on."""
    findings = result.findings
    await store.add_metrics([as_metrics(result.run_id, step, result.method, findings)])
    evidence = {
        "method": result.method.value,
        "rollouts": result.rollouts,
        "replays": result.replays,
        "asked": result.asked,
        "answered_by": result.answered_by,
        "problems": dict(result.problems),
        "findings": as_evidence(findings),
    }
    await store.add_decision(
        Decision(result.run_id, KIND, f"{result.rollouts} rollouts of run {result.run_id}", evidence)
    )
