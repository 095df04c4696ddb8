"""Progress for people: bars on a terminal, plain lines with a time elsewhere. Both write to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from coterie_trainers.progress import Progress

SECONDS_BETWEEN_LINES = 5.0
"""How often a stage in progress writes a plain line, at most."""


def make_progress(stream: TextIO | None = None) -> Progress:
    """Bars if ``stream`` (standard error by default) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    return BarProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress(stream)


class BarProgress:
    """A bar a stage; those that ended stay above with their last figures and their time."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", style="bold", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._stage: TaskID | None = None
        self._figures: dict[str, float | str] = {}

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; the one before it has ended."""
        self._end_stage()
        self._figures = {}
        self._bars.start()
        self._stage = self._bars.add_task(name, total=total, figures="")

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Units done in the present stage, with figures to show beside."""
        self._figures.update(figures)
        if self._stage is not None:
            self._bars.update(self._stage, advance=amount, figures=figures_text(self._figures))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(Text(text), highlight=False)

    def warn(self, text: str) -> None:
        """A line above the bars that stands out."""
        self._bars.console.print(Text(f"WARNING: {text}", style="bold yellow"), highlight=False)

    def close(self) -> None:
        """The last stage has ended; the terminal is as it was."""
        self._end_stage()
        self._bars.stop()

    def _end_stage(self) -> None:
        if self._stage is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._stage)
        if task.total is None:
            self._bars.update(self._stage, total=max(1, task.completed), completed=max(1, task.completed))
        self._bars.stop_task(self._stage)
        self._stage = None


class LineProgress:
    """Lines for logs: when a stage begins and ends, and in between one every few seconds at most."""

    def __init__(self, stream: TextIO, *, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = stream
        self._seconds_between_lines = seconds_between_lines
        self._name: str | None = None
        self._total: int | None = None
        self._done = 0
        self._figures: dict[str, float | str] = {}
        self._began = self._last_line = time.monotonic()

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; the one before it has ended."""
        self._end_stage()
        self._name, self._total, self._done, self._figures = name, total, 0, {}
        self._began = self._last_line = time.monotonic()
        self._write(f"{name} …")

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Units done in the present stage, with figures to show beside."""
        self._done += amount
        self._figures.update(figures)
        if self._name is not None and time.monotonic() - self._last_line >= self._seconds_between_lines:
            self._last_line = time.monotonic()
            self._write(self._standing())

    def note(self, text: str) -> None:
        """A line worth keeping."""
        self._write(text)

    def warn(self, text: str) -> None:
        """A line that must not be overlooked."""
        self._write(f"WARNING: {text}")

    def close(self) -> None:
        """The last stage has ended."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._name is not None:
            ended = "" if self._total is not None and self._done < self._total else "done, "
            self._write(f"{self._standing()} ({ended}{time.monotonic() - self._began:.1f} s)")
        self._name = None

    def _standing(self) -> str:
        count = "" if not self._done and self._total is None else f" {self._done}"
        count += f"/{self._total}" if self._total is not None and count else ""
        figures = figures_text(self._figures)
        return f"{self._name}{count}{' ' if figures else ''}{figures}"

    def _write(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._stream.write("".join(f"{stamp} {line}\n" for line in text.splitlines() or [""]))
        self._stream.flush()


def figures_text(figures: Mapping[str, float | str]) -> str:
    """Figures as people read them: ``success 0.412  loss 0.0031``."""
    return "  ".join(
        f"{name} {value}" if isinstance(value, str | int) else f"{name} {value:.3g}" for name, value in figures.items()
    )
