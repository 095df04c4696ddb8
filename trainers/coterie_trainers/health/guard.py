"""The guard: all rules over the history of a run. Ok, warn or stop, with reasons."""

from __future__ import annotations

from coterie_trainers.config import Guard
from coterie_trainers.health.history import History
from coterie_trainers.health.rules import RULES
from coterie_trainers.health.verdict import Verdict


def judge(history: History, guard: Guard) -> Verdict:
    """What the rules that are on find after the last step of a history. A pure function of the figures."""
    findings = [
        finding
        for name, rule in RULES.items()
        if (limits := getattr(guard, name)) is not None
        for finding in rule(history, limits)
    ]
    return Verdict(history.now, sorted(findings, key=lambda finding: -finding.level))
