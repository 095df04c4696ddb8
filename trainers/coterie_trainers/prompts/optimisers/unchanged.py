"""``unchanged``: the prompts as they are. What every other optimiser must beat, at the same cost of measuring."""

from __future__ import annotations

from collections.abc import Sequence

from coterie_trainers.prompts.study import Candidate, Optimiser, Study


def make() -> Optimiser:
    """An optimiser that changes nothing. It has no settings."""
    return unchanged


async def unchanged(study: Study) -> Sequence[Candidate]:
    """The seed is the only finalist."""
    return [study.seed]
