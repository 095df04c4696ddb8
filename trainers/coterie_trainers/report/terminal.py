"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from coterie.vocabulary import RunState
from coterie_trainers.report.audits import HEADS, ShownAudit
from coterie_trainers.report.blocks import listing, table, title
from coterie_trainers.report.figures import Figures
from coterie_trainers.report.pairs import EpisodePair, ShownEpisode
from coterie_trainers.report.places import Places, listed_places, next_commands
from coterie_trainers.report.plot import plot_curve
from coterie_trainers.report.wording import (
    cost_lines,
    headline,
    health_lines,
    number,
    percent,
    percent_interval,
    points_interval,
    visible,
)


def print_report(figures: Figures, places: Places, console: Console) -> None:
    """Print everything, top down: the result, then where it comes from, then what to do."""
    for part in _parts(figures, places, console.width):
        console.print(part, highlight=False)


def _parts(figures: Figures, places: Places, width: int) -> Iterator[RenderableType]:
    yield Rule(Text(visible(f"{figures.run.name} · {figures.run.id}")))
    yield Text(headline(figures), style="bold green" if figures.run.state is RunState.SUCCEEDED else "bold yellow")
    yield title("Success (95 % intervals over tasks; difference in percentage points)")
    yield _success(figures)
    plot = plot_curve(figures.curve, width=min(width, 90))
    if plot:
        yield title("Success by training step (· its own rollouts, ◆ validation)")
        yield Text(plot)
    if figures.families:
        yield title("By family (sampled)")
        yield _families(figures)
    if figures.roles:
        yield title("By role (sampled)")
        yield _roles(figures)
    for audit in figures.audits:
        yield from audit_parts(audit)
    if figures.pairs:
        yield title("Episodes before and after")
        for pair in figures.pairs:
            yield _pair(pair, width)
    yield title("Health")
    for good, line in health_lines(figures):
        yield Text(f"{'✓' if good else '!'} {visible(line)}", style="" if good else "bold yellow")
    yield title("Costs")
    for line in cost_lines(figures):
        yield Text(visible(line))
    yield title("Where everything lies")
    yield listing(listed_places(figures, places))
    yield title("What to run next")
    for command, purpose in next_commands(figures, places):
        yield Text(f"  {visible(command)}", style="bold").append(f"   {visible(purpose)}", style="not bold dim")


def audit_parts(audit: ShownAudit) -> Iterator[RenderableType]:
    """One audit: its title, a row a role or turn, and what was no evidence."""
    yield title(audit.title)
    rows = table(*HEADS[audit.method])
    for place, *cells in audit.rows:
        rows.add_row(Text(visible(place)), *cells)
    yield rows
    yield Text(audit.legend, style="dim")
    for problem, count in audit.problems.items():
        yield Text(visible(f"! {count} {problem}"), style="bold yellow")


def _success(figures: Figures) -> Table:
    rows = table("test split", "before", "after", "difference", "tasks")
    for decoding, measured in figures.decodings.items():
        tasks = measured.after or measured.before
        rows.add_row(
            decoding,
            percent_interval(measured.before),
            percent_interval(measured.after),
            points_interval(measured.difference),
            str(tasks.tasks) if tasks else "–",
        )
    return rows


def _families(figures: Figures) -> Table:
    rows = table("family", "before", "after", "tasks")
    for family in figures.families:
        rows.add_row(Text(visible(family.family)), percent(family.before), percent(family.after), str(family.tasks))
    return rows


def _roles(figures: Figures) -> Table:
    rows = table("role", "reward before", "after", "calls a rollout", "after", "calls of the run")
    for role in figures.roles:
        rows.add_row(
            Text(visible(role.role)),
            number(role.reward_before),
            number(role.reward_after),
            number(role.calls_before),
            number(role.calls_after),
            f"{role.calls:,}",
        )
    return rows


def _pair(pair: EpisodePair, width: int) -> RenderableType:
    family = f" · {pair.family}" if pair.family else ""
    head = Text(f"{pair.title}{visible(family)} ({pair.decoding})\n", style="bold")
    head.append(visible(pair.input, lines=6), style="not bold")
    if pair.reference:
        head.append(f"\n{visible(pair.reference, lines=6)}", style="not bold dim")
    wide = width >= 90
    half = (width - 6) // 2 if wide else width - 4
    sides = [_episode("before", pair.before, half), _episode("after", pair.after, half)]
    grid = Table.grid(padding=(0, 1))
    grid.add_row(head)
    grid.add_row(Columns(sides, expand=False) if wide else _stacked(sides))
    return grid


def _stacked(parts: Sequence[RenderableType]) -> Table:
    grid = Table.grid()
    for part in parts:
        grid.add_row(part)
    return grid


def _episode(name: str, episode: ShownEpisode, width: int) -> Panel:
    text = Text()
    for role, said in episode.turns:
        text.append(f"{visible(role)}: ", style="bold")
        text.append(f"{visible(said, lines=12)}\n")
    text.rstrip()
    outcome = "won" if episode.won else "lost"
    return Panel(
        text if episode.turns else Text("no call", style="dim"),
        title=f"{name}: {outcome}",
        border_style="green" if episode.won else "red",
        width=width,
    )
