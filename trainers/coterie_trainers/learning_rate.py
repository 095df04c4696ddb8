"""The learning rate of a policy's n-th update."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    update: int, *, kind: Literal["constant", "linear", "cosine"], warmup: int, floor: float, steps: int
) -> float:
    """What the policy's learning rate is multiplied with.

    ::

        warm-up    (update + 1) / (warmup + 1)                      for update < warmup
        linear     1 − (1 − floor) · x
        cosine     floor + (1 − floor) · (1 + cos πx) / 2           x = (update − warmup) / (steps − warmup), at most 1

    Unlike the schedules of verl and transformers the warm-up does not begin at 0: an update at the rate 0 would be
    rollouts for nothing.

    Args:
        update: How many updates came before; 0 for the first.
        kind: Of the fall.
        warmup: Updates of the warm-up.
        floor: Where the fall ends, between 0 and 1.
        steps: Updates until then.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    x = min(1.0, (update - warmup) / max(1, steps - warmup))
    fallen = x if kind == "linear" else (1 - math.cos(math.pi * x)) / 2
    return 1.0 - (1.0 - floor) * fallen
