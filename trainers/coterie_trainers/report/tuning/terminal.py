"""The report of a tuning run on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from coterie_trainers.report.blocks import listing, table, title
from coterie_trainers.report.places import Places
from coterie_trainers.report.tuning.figures import PromptChange, TuningFigures
from coterie_trainers.report.tuning.wording import (
    CANDIDATE_HEADS,
    candidate_row,
    change_facts,
    change_title,
    headline,
    health_lines,
    next_commands,
    places_listed,
    score_note,
    score_rows,
    spent_lines,
)
from coterie_trainers.report.wording import visible

SHOWN_CANDIDATES = 12
"""Candidates that are shown here; the page has all."""
COLOURS = {"+": "green", "-": "red", "@": "cyan"}
"""First character of a line of a diff → its colour."""


def print_tuning(figures: TuningFigures, places: Places, console: Console) -> None:
    """Print everything, top down: the result, each prompt, then how it came to it."""
    for part in _parts(figures, places):
        console.print(part, highlight=False)


def _parts(figures: TuningFigures, places: Places) -> Iterator[RenderableType]:
    yield Rule(Text(visible(f"{figures.run.name} · {figures.run.id} · {figures.optimiser}")))
    yield Text(visible(headline(figures)), style="bold green" if figures.taken else "bold yellow")
    rows = score_rows(figures)
    if rows:
        yield title("Score on the held-out test")
        yield _scores(figures)
        yield Text(score_note(figures), style="dim")
    for change in figures.prompts:
        yield title(visible(change_title(change)))
        if change.changed:
            yield from _change(change)
    if figures.candidates:
        yield title("Candidates (mean score by split, and rollouts)")
        yield _candidates(figures)
        left = len(figures.candidates) - SHOWN_CANDIDATES
        if left > 0:
            yield Text(f"… and {left} more on the page", style="dim")
    yield title("Budget")
    for line in spent_lines(figures):
        yield Text(visible(line))
    yield title("Health")
    for good, line in health_lines(figures):
        yield Text(f"{'✓' if good else '!'} {visible(line)}", style="" if good else "bold yellow")
    yield title("Where everything lies")
    yield listing(places_listed(places))
    yield title("What to run next")
    for command, purpose in next_commands(figures, places):
        yield Text(f"  {visible(command)}", style="bold").append(f"   {visible(purpose)}", style="not bold dim")


def _scores(figures: TuningFigures) -> Table:
    made = table("", "before", "after", "gain", "tasks")
    for name, *cells in score_rows(figures):
        made.add_row(Text(visible(name)), *cells)
    return made


def _change(change: PromptChange) -> Iterator[RenderableType]:
    yield Text(visible(change_facts(change)), style="dim")
    if change.why:
        yield Text("why: ", style="bold").append(visible(change.why, lines=12), style="not bold")
    for line in change.diff:
        yield Text(f"  {visible(line)}", style=COLOURS.get(line[:1], ""))


def _candidates(figures: TuningFigures) -> Table:
    first, *others = CANDIDATE_HEADS
    made = Table(box=None, pad_edge=False, header_style="dim")
    for name in (first, *others):
        made.add_column(Text(name), overflow="fold")
    for candidate in figures.candidates[:SHOWN_CANDIDATES]:
        made.add_row(*(Text(visible(cell)) for cell in candidate_row(candidate)))
    return made
