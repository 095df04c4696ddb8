"""Entropy collapse: a role has become certain of its answers before they are good.

Policy entropy is what reinforcement learning pays with for reward; once it is spent, nothing new is tried and success stays
where it is (Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", arXiv
2505.22617). ``collapse.py`` says when that is a warning and when it stops the run.
"""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.config import CollapseLimits
from coterie_trainers.health.history import History
from coterie_trainers.health.rules.collapse import collapsed
from coterie_trainers.health.verdict import Finding


def entropy(history: History, limits: CollapseLimits) -> Iterator[Finding]:
    """Entropy a token, as a share of what the role began with."""
    return collapsed(history, limits, rule="entropy", figure="entropy", unit=" nats a token")
