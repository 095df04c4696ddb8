"""The tables and the plot of ``docs/credit.md``, from the JSON file that ``credit.py`` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradients.measuring import ALL, KNOWN

WIDTH, HEIGHT = 960, 330
LOWEST, HIGHEST = 0.3, 0.9
"""Cosines that the plot's scale begins and ends with."""
LEFT, RIGHT, TOP, BOTTOM, GAP = 48, 190, 34, 44, 26
COLOURS = (
    "#999999",
    "#444444",
    "#0b7fab",
    "#d1495b",
    "#3a9d5d",
    "#8f5bb5",
    "#c98a10",
    "#3f6fd8",
    "#7a5c3e",
    "#d46fb0",
    "#5aa9a3",
)

Figures = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]]
"""Setting → group size → estimator → role or ``all`` → figure."""


def tables(figures: Figures, group_size: str) -> str:
    """Two tables a setting, as markdown: the cosine by group size, and everything at one group size."""
    sections = []
    for setting, by_size in figures.items():
        estimators = list(next(iter(by_size.values())))
        sizes = list(by_size)
        head = ["estimator", *(f"group {size}" for size in sizes)]
        rows = [
            [f"`{name}`" if name != KNOWN else name, *(_two(by_size[size][name][ALL]["cosine"]) for size in sizes)]
            for name in estimators
        ]
        sections.append(
            f"### {setting}\n\nCosine of a batch's gradient with the true one, all roles:\n\n{_table(head, rows)}"
        )
        at = by_size[group_size]
        roles = [part for part in next(iter(at.values())) if part != ALL]
        head = ["estimator", *roles, "mean gradient", "noise"]
        rows = [
            [
                f"`{name}`" if name != KNOWN else name,
                *(_two(at[name][role]["cosine"]) for role in roles),
                _two(at[name][ALL]["mean_cosine"]),
                _two(at[name][ALL]["noise"]),
            ]
            for name in estimators
        ]
        sections.append(
            f"At group size {group_size}, cosine by role; cosine of the mean gradient; noise:\n\n{_table(head, rows)}"
        )
    return "\n\n".join(sections)


def plot(figures: Figures) -> str:
    """Cosine by group size as SVG, a panel a setting, a line an estimator."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        "<title>Cosine of a batch's gradient with the true one, by group size</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(_shapes(figures))}</svg>\n'
    )


def _shapes(figures: Figures) -> Iterator[str]:
    panel = (WIDTH - LEFT - RIGHT - GAP * (len(figures) - 1)) / len(figures)
    names: Sequence[str] = ()
    for number, (setting, by_size) in enumerate(figures.items()):
        left = LEFT + number * (panel + GAP)
        yield from _panel(setting, by_size, left, panel, scale=number == 0)
        names = list(next(iter(by_size.values())))
    for number, name in enumerate(names):
        row = TOP + 10 + number * 20
        yield f'<rect x="{WIDTH - RIGHT + 16}" y="{row - 5}" width="14" height="4" fill="{_colour(number)}"/>'
        yield f'<text x="{WIDTH - RIGHT + 36}" y="{row + 1}">{name}</text>'


def _panel(setting: str, by_size: Mapping[str, Any], left: float, width: float, *, scale: bool) -> Iterator[str]:
    sizes = list(by_size)

    def x(place: int) -> float:
        return left + place / max(len(sizes) - 1, 1) * width

    def y(cosine: float) -> float:
        share = (min(max(cosine, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    yield f'<text x="{left + width / 2:.1f}" y="{TOP - 14}" text-anchor="middle" font-weight="bold">{setting}</text>'
    for tick in (LOWEST, 0.5, 0.7, HIGHEST):
        yield f'<line x1="{left:.1f}" x2="{left + width:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
        if scale:
            yield f'<text x="{left - 8:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
    for place, size in enumerate(sizes):
        yield f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size}</text>'
    yield f'<text x="{left + width / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">group size</text>'
    for number, name in enumerate(by_size[sizes[0]]):
        points = " ".join(
            f"{x(place):.1f},{y(by_size[size][name][ALL]['cosine']):.1f}" for place, size in enumerate(sizes)
        )
        dashes = ' stroke-dasharray="5 4"' if name == KNOWN else ""
        yield f'<polyline points="{points}" fill="none" stroke="{_colour(number)}" stroke-width="2"{dashes}/>'


def _colour(number: int) -> str:
    return (*COLOURS, "#000000")[number % (len(COLOURS) + 1)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _two(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
