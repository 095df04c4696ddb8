"""The audits of a run in the report: which role or turn made the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from coterie.vocabulary import JSON, Decision
from coterie_trainers.audits.audit import Audit
from coterie_trainers.audits.findings import KIND, Finding, Method, findings_in
from coterie_trainers.intervals import Interval

TITLES = {
    Method.MASK: "What each role is worth",
    Method.REPLAY: "Which turn decides",
}
HEADS = {
    Method.MASK: ("role", "worth", "n"),
    Method.REPLAY: ("turn", "variance", "when lost", "when won", "n"),
}
"""Short, so that a table fits a terminal; ``LEGENDS`` say what they mean."""
LEGENDS = {
    Method.MASK: "worth: the outcome less that without the role. n: rollouts.",
    Method.REPLAY: "variance: the part of the outcome's variance that hangs on the turn's message. When lost, when won: what "
    "the message brought in rollouts that were lost or won. n: rollouts.",
}


@dataclass(frozen=True, slots=True)
class ShownAudit:
    """The newest audit by one method."""

    method: Method
    rollouts: int
    replays: int
    answered_by: str
    problems: Mapping[str, int]
    findings: Sequence[Finding]

    @property
    def title(self) -> str:
        """What was asked, of how much."""
        return f"{TITLES[self.method]} ({self.method} audit: {self.rollouts:,} rollouts, {self.replays:,} replays)"

    @property
    def legend(self) -> str:
        """What the columns mean."""
        return f"{LEGENDS[self.method]} Intervals are 95 % over tasks."

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row a place, under ``HEADS``."""
        return [
            (
                found.place,
                signed(found.weight),
                *(() if self.method is Method.MASK else (signed(found.lost), signed(found.won))),
                f"{found.rollouts:,}",
            )
            for found in self.findings
        ]


def newest_audits(decisions: Sequence[Decision]) -> list[ShownAudit]:
    """The newest audit by each method among a run's decisions, in order of time."""
    newest = {str(decision.evidence["method"]): decision for decision in decisions if decision.kind == KIND}
    return [
        ShownAudit(
            Method(method),
            rollouts=decision.evidence["rollouts"],
            replays=decision.evidence["replays"],
            answered_by=decision.evidence["answered_by"],
            problems=decision.evidence["problems"],
            findings=findings_in(decision),
        )
        for method, decision in newest.items()
    ]


def shown(audit: Audit) -> ShownAudit:
    """An audit that has just been made."""
    return ShownAudit(
        audit.method, audit.rollouts, audit.replays, audit.answered_by, dict(audit.problems), audit.findings
    )


def audit_as_json(audit: ShownAudit) -> Mapping[str, JSON]:
    """For machines."""
    return {
        "method": audit.method.value,
        "rollouts": audit.rollouts,
        "replays": audit.replays,
        "answered_by": audit.answered_by,
        "problems": dict(audit.problems),
        "findings": [asdict(finding) for finding in audit.findings],
    }


def signed(interval: Interval | None) -> str:
    """``+0.52 [0.40, 0.64]``."""
    return "–" if interval is None else f"{interval.value:+.2f} [{interval.low:.2f}, {interval.high:.2f}]"
