"""What an audit found: figures with intervals, and how they stand in the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from coterie.vocabulary import JSON, Decision, Metrics
from coterie_trainers.intervals import Interval, mean_interval

KIND = "audited"
"""``Decision.kind`` of an audit's result."""


class Method(StrEnum):
    """How an audit changes what it plays again."""

    MASK = "mask"
    """Without a role: what is each role worth?"""
    REPLAY = "replay"
    """Another message at one turn: which turn decided?"""


@dataclass(frozen=True, slots=True)
class Credited:
    """The credit of one place in one rollout."""

    rollout_id: str
    task_id: str
    won: bool
    role: str
    turn: int | None
    """The how-many-eth call of the role, from 0; None for the role as a whole."""
    credit: float
    weight: float
    """How much hangs on the place: by mask the credit itself, by replay its part of the outcome's variance."""
    replays: int
    """That the credit is of."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an audit found of a role, or of one turn of it."""

    role: str
    turn: int | None
    weight: Interval
    """How much hangs on it: the mean of the weights."""
    lost: Interval | None
    """By replay the mean credit in the rollouts that were lost: below 0 where another message would have won. None without
    any, and by mask."""
    won: Interval | None
    """The same in the rollouts that were won: above 0 where this very message was needed."""
    rollouts: int
    replays: int

    @property
    def place(self) -> str:
        """``coder``, or ``coder 0`` for a turn."""
        return self.role if self.turn is None else f"{self.role} {self.turn}"


def findings_of(credited: Sequence[Credited]) -> list[Finding]:
    """One finding a place, that with the most weight first. Intervals are over tasks.

    Of a role's credit (mask) there is no part for lost rollouts: they are those in which luck was bad as well, and what is
    asked anew behind the mask has its luck anew. So every role that comes before the one that lost would be blamed.
    """
    places: dict[tuple[str, int | None], list[Credited]] = defaultdict(list)
    for one in credited:
        places[one.role, one.turn].append(one)
    findings = [
        Finding(
            role,
            turn,
            weight=mean_interval(_by_task(found, "weight")),
            lost=_interval([one for one in found if turn is not None and not one.won]),
            won=_interval([one for one in found if turn is not None and one.won]),
            rollouts=len(found),
            replays=sum(one.replays for one in found),
        )
        for (role, turn), found in places.items()
    ]
    return sorted(findings, key=lambda finding: -finding.weight.value)


def as_metrics(run_id: str, step: int, method: Method, findings: Sequence[Finding]) -> Metrics:
    """The figures as a row of the run, of stage ``audit_mask`` or ``audit_replay``."""
    values: dict[str, float | int | str | None] = {}
    for finding in findings:
        for name in ("weight", "lost", "won"):
            interval: Interval | None = getattr(finding, name)
            if interval is not None:
                values[f"{finding.place}/{name}"] = interval.value
    return Metrics(run_id, step, values, stage=f"audit_{method}")


def as_evidence(findings: Sequence[Finding]) -> list[Mapping[str, JSON]]:
    """Findings as JSON, for a decision's evidence."""
    return [asdict(finding) for finding in findings]


def findings_in(decision: Decision) -> list[Finding]:
    """The findings that a decision of kind ``audited`` holds."""

    def interval(value: Any) -> Interval | None:
        return None if value is None else Interval(**value)

    return [
        Finding(
            **{**one, "weight": Interval(**one["weight"]), "lost": interval(one["lost"]), "won": interval(one["won"])}
        )
        for one in decision.evidence["findings"]
    ]


def _interval(found: Sequence[Credited]) -> Interval | None:
    return mean_interval(_by_task(found, "credit")) if found else None


def _by_task(found: Sequence[Credited], name: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for one in found:
        values[one.task_id].append(getattr(one, name))
    return values
