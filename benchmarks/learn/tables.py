"""The tables and plots of ``docs/learning.md``, from the JSON files that ``learning.py`` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learn.cells import BASELINE
from learn.curves import Spread, VariantFigures, variant_figures

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 176, 16, 44
COLOURS = ("#444444", "#0b7fab", "#d1495b", "#3a9d5d", "#8f5bb5", "#c98a10", "#3f6fd8", "#7a5c3e", "#d46fb0", "#5aa9a3")


def joined(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The runs of all files; of a cell that is in several, the last file's."""
    cells = {}
    for file in files:
        for run in json.loads(file.read_text())["runs"]:
            cells[run["task"], run["variant"], run["seed"]] = run
    return list(cells.values())


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """A table a task, as markdown."""
    figures = variant_figures(runs, BASELINE)
    sections = []
    for task in dict.fromkeys(each.task for each in figures):
        rows = [_row(each) for each in figures if each.task == task]
        head = ["variant", "seeds", "start", "final", f"budget to reach what {BASELINE} ends with", "training, s"]
        lines = [head, ["---"] * len(head), *rows]
        sections.append(f"### {task}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(sections)


def write_plots(runs: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture a task: success over training rollouts, a line a variant, its range over seeds as a band."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = variant_figures(runs, BASELINE)
    written = []
    for task in dict.fromkeys(each.task for each in figures):
        path = folder / f"learning-{task.replace('_', '-')}.svg"
        path.write_text(_plot(task, [each for each in figures if each.task == task]))
        written.append(path)
    return written


def _row(figures: VariantFigures) -> list[str]:
    return [
        f"`{figures.variant}`",
        str(len(figures.seeds)),
        _told(figures.start),
        _told(figures.final),
        "–" if figures.ratio is None else _told(figures.ratio),
        f"{figures.train_seconds:.0f}",
    ]


def _told(spread: Spread) -> str:
    if spread.low is None or spread.high is None:
        return _number(spread.value)
    return f"{_number(spread.value)} ({_number(spread.low)} to {_number(spread.high)})"


def _number(value: float) -> str:
    if math.isinf(value):
        return "not reached"
    return "–" if math.isnan(value) else f"{value:.2f}"


def _plot(task: str, figures: Sequence[VariantFigures]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        f"<title>{task}: success by training rollouts</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(_shapes(figures))}</svg>\n'
    )


def _shapes(figures: Sequence[VariantFigures]) -> Iterator[str]:
    most = max(float(each.rollouts_P[-1]) for each in figures) or 1.0

    def x(rollouts: float) -> float:
        return LEFT + rollouts / most * (WIDTH - LEFT - RIGHT)

    def y(success: float) -> float:
        return HEIGHT - BOTTOM - success * (HEIGHT - TOP - BOTTOM)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        yield f'<text x="{x(share * most):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{share * most:.0f}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">training rollouts</text>'
    for number, each in enumerate(figures):
        colour = COLOURS[number % len(COLOURS)]
        low, high, mean = (rule(each.success_S_P, axis=0) for rule in (np.min, np.max, np.mean))
        if len(each.seeds) > 1:
            there = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(each.rollouts_P, high, strict=True)]
            back = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(each.rollouts_P, low, strict=True)]
            yield f'<polygon points="{" ".join([*there, *back[::-1]])}" fill="{colour}" opacity="0.13"/>'
        line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in zip(each.rollouts_P, mean, strict=True))
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        row = TOP + 14 + number * 19
        yield f'<rect x="{WIDTH - RIGHT + 14}" y="{row - 9}" width="14" height="4" fill="{colour}"/>'
        yield f'<text x="{WIDTH - RIGHT + 34}" y="{row - 3}">{each.variant} ({len(each.seeds)})</text>'
