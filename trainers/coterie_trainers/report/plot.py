"""The learning curve in characters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from coterie_trainers.report.figures import Curve, CurvePoint

TRAIN, VAL, BOTH = "·", "◆", "◈"
LABEL = 5
"""Columns of the scale at the left."""


def plot_curve(curve: Curve, *, width: int = 72, height: int = 11) -> str:
    """Success (0 to 100 %) over steps: ``·`` a step's own rollouts, ``◆`` validation. Empty without any point.

    Steps that share a column are averaged.
    """
    steps = [point.step for point in (*curve.train, *curve.val)]
    if not steps:
        return ""
    first, last = min(steps), max(steps)
    columns = max(10, width - LABEL - 2)
    grid = [[" "] * columns for _ in range(height)]
    for mark, points in ((TRAIN, curve.train), (VAL, curve.val)):
        for column, success in _by_column(points, first, last, columns).items():
            level = height - 1 - round(min(1.0, max(0.0, success)) * (height - 1))
            taken = grid[level][column]
            grid[level][column] = BOTH if mark == VAL and taken == TRAIN else mark
    lines = []
    for number, row in enumerate(grid):
        share = 1 - number / (height - 1)
        label = f"{share:.0%}" if number in (0, height - 1) or number == (height - 1) // 2 else ""
        lines.append(f"{label:>{LABEL}} │{''.join(row)}".rstrip())
    end = f"step {last}"
    start = f"{first}"
    lines.append(f"{'':>{LABEL}} └{'─' * columns}")
    lines.append(f"{'':>{LABEL}}  {start}{end:>{max(len(end) + 1, columns - len(start))}}")
    return "\n".join(lines)


def _by_column(points: Sequence[CurvePoint], first: int, last: int, columns: int) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for point in points:
        place = (point.step - first) / (last - first) if last > first else 0.0
        values[round(place * (columns - 1))].append(point.success)
    return {column: sum(each) / len(each) for column, each in values.items()}
