"""Length explosion: a role's answers have grown far beyond what they were.

Longer answers may be better ones (reasoning grows while reward does), so that growth alone is a warning. Where reward
does not rise with it, it is a loop, or padding for a reward that counts words.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import Limits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.row import beginning, crossed, relative, rises
from coterie_trainers.health.verdict import Finding, Level


def length(history: History, limits: Limits) -> Iterator[Finding]:
    """Mean tokens a response, as a multiple of what the role began with."""
    for subject, points in history.by_subject("length").items():
        began = beginning(points)
        found = crossed(relative(points, began), limits) if began > 0 else None
        if found is None:
            continue
        level, since = found
        rising = rises(history.reward(subject))
        value = points[-1].value
        yield Finding(
            "length",
            Level.WARN if rising else level,
            subject,
            f"answers of {value:.0f} tokens, {value / began:.1f} times the {began:.0f} they began with"
            + ("" if rising else ", and reward no longer rises"),
            since,
        )
