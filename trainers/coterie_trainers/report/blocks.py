"""The pieces that reports on a terminal are made of."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from coterie_trainers.report.wording import visible


def title(text: str) -> Text:
    """The title of a part."""
    return Text(f"\n{text}", style="bold cyan")


def listing(rows: Sequence[tuple[str, str]]) -> Table:
    """Names with what they stand for."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(f"  {visible(name)}", Text(visible(value), overflow="fold"))
    return grid


def table(first: str, *others: str) -> Table:
    """A table with these heads; numbers stand to the right."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    made.add_column(Text(first))
    for name in others:
        made.add_column(Text(name), justify="right", no_wrap=True)
    return made
