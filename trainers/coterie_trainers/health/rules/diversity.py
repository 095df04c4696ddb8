"""Diversity collapse: a role gives the same answer whenever it is asked the same (``health/diversity.py``).

It shows what entropy a token may hide: a policy that is unsure of every word and says the same thing in the end.
``collapse.py`` says when that is a warning and when it stops the run.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import CollapseLimits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.collapse import collapsed
from coterie_trainers.health.verdict import Finding


def diversity(history: History, limits: CollapseLimits) -> Iterator[Finding]:
    """Diversity of a role's answers, as a share of what it began with."""
    return collapsed(history, limits, rule="diversity", figure="diversity", unit="")
