"""Which version of a run is good enough to go back to.

A look at the validation split is good when its success is within a margin of the best look, and the guard had nothing to
say at that step. Step 0, what the run began with, is good where there is no such look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

BEGINNING = 0
"""The step before the first."""


def good_steps(looks: Mapping[int, float], warned: Collection[int], margin: float) -> list[int]:
    """The steps of good looks, in order, after the beginning.

    Args:
        looks: Step → success on validation.
        warned: Steps at which the guard found something.
        margin: How far below the best look success may be.
    """
    best = max(looks.values(), default=0.0)
    return [
        BEGINNING,
        *(step for step, success in sorted(looks.items()) if success >= best - margin and step not in warned),
    ]


def step_to_go_back_to(good: Collection[int], saved: Collection[int], *, since: int) -> int | None:
    """The newest good step that has a checkpoint and lies before the trouble began; else the oldest checkpoint of all.

    Args:
        good: Steps of good looks.
        saved: Steps that have a checkpoint.
        since: The step at which the trouble began: its update may be part of it.
    """
    before = [step for step in good if step in saved and step < since]
    return max(before) if before else min(saved, default=None)
