"""What ``coterie run`` says: a live line on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict
from typing import Any, TextIO

from coterie.runner.attempts import Ended, RunnerStatistics
from coterie.runner.embedded import Runner
from coterie.vocabulary import AttemptState

MOST_TOLD = 100
"""Kinds of failures that are told one by one; each kind is told once."""


class RunDisplay:
    """Plain lines with a time, on standard error."""

    live = False
    """True if ``report`` should come often."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.log_handler: logging.Handler = _LogLines(self)
        self._began = time.monotonic()
        self._reported: tuple[RunnerStatistics, int] | None = None
        self._told: set[str] = set()

    def started(self, runner: Runner) -> None:
        """The runner takes work from now on."""
        self._began = time.monotonic()
        of_run = f" of run {runner.run_id}" if runner.run_id else ""
        self.line(f"{runner.worker} plays {runner.function.name}, {runner.concurrency} at once{of_run}")

    def ended(self, end: Ended) -> None:
        """An attempt has ended. A failure is told, each kind once."""
        first_line = (end.outcome.error or "").partition("\n")[0]
        kind = f"{end.outcome.cause} {first_line}"
        if end.outcome.state is not AttemptState.FAILED or kind in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told.add(kind)
        rollout = end.lease.rollout
        self.line(f"attempt {end.lease.attempt.number} at rollout {rollout.id} failed: {first_line}")

    def report(self, runner: Runner) -> None:
        """Say what was done, if it is more than before."""
        standing = (runner.statistics, runner.running)
        if standing != self._reported:
            self._reported = standing
            self.line(self.standing(runner))

    def draining(self, runner: Runner, signal_name: str, seconds: float) -> None:
        """No more work is taken."""
        self.line(
            f"{signal_name}: taking no more work; {runner.running} running attempts have {seconds:g} s to end. "
            "Again: give them back at once."
        )

    def stopped(self, runner: Runner) -> None:
        """The runner has ended."""
        self.line(f"stopped after {time.monotonic() - self._began:.0f} s: {_done(runner.statistics)}")

    def standing(self, runner: Runner) -> str:
        """One line of what is and was."""
        parts = [f"{runner.running} running", _done(runner.statistics)]
        seconds = time.monotonic() - self._began
        if seconds >= 1:
            parts.append(f"{runner.statistics.succeeded / seconds * 60:.3g} succeeded a minute")
        if runner.waiting:
            parts.append(f"{runner.waiting} spans and rewards to write")
        if runner.away_seconds is not None:
            parts.append(f"store away for {runner.away_seconds:.0f} s")
        return ", ".join(parts)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        stamp = time.strftime("%H:%M:%S")
        self.stream.write("".join(f"{stamp} {line}\n" for line in text.splitlines() or [""]))
        self.stream.flush()

    def warning(self, text: str) -> None:
        """Write a line that must not be overlooked."""
        self.line(f"WARNING: {text}")

    def close(self) -> None:
        """Nothing more comes."""
        logging.getLogger("coterie").removeHandler(self.log_handler)


class LiveDisplay(RunDisplay):
    """One line that changes in place; what should stay is written above it."""

    live = True

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.status import Status

        self._console = Console(file=stream)
        self._status = Status("", console=self._console)

    def started(self, runner: Runner) -> None:
        """The runner takes work from now on."""
        super().started(runner)
        self._status.start()
        self.report(runner)

    def report(self, runner: Runner) -> None:
        """Renew the line."""
        from rich.text import Text

        self._status.update(Text(self.standing(runner)))

    def stopped(self, runner: Runner) -> None:
        """The runner has ended."""
        self._status.stop()
        super().stopped(runner)

    def line(self, text: str) -> None:
        """Write a line that stays, above the live one."""
        from rich.text import Text

        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"), highlight=False)

    def close(self) -> None:
        """Nothing more comes; the terminal is as it was."""
        self._status.stop()
        super().close()


class JsonDisplay(RunDisplay):
    """One JSON object a line, each with ``event`` and ``time_ns``."""

    def started(self, runner: Runner) -> None:
        """The runner takes work from now on."""
        self._write(
            "started",
            worker=runner.worker,
            function=runner.function.name,
            concurrency=runner.concurrency,
            run_id=runner.run_id,
        )

    def ended(self, end: Ended) -> None:
        """An attempt has ended."""
        self._write(
            "attempt",
            rollout_id=end.lease.rollout.id,
            attempt_id=end.lease.attempt.id,
            number=end.lease.attempt.number,
            state=end.outcome.state.value,
            cause=end.outcome.cause and end.outcome.cause.value,
            error=end.outcome.error,
            seconds=round(end.seconds, 3),
            written=end.written,
        )

    def report(self, runner: Runner) -> None:
        """Say what was done."""
        self._write("standing", **_figures(runner))

    def draining(self, runner: Runner, signal_name: str, seconds: float) -> None:
        """No more work is taken."""
        self._write("draining", signal=signal_name, seconds=seconds, running=runner.running)

    def stopped(self, runner: Runner) -> None:
        """The runner has ended."""
        self._write("stopped", **_figures(runner))

    def warning(self, text: str) -> None:
        """Write a warning."""
        self._write("warning", text=text)

    def _write(self, event: str, **fields: Any) -> None:
        self.stream.write(json.dumps({"event": event, "time_ns": time.time_ns(), **fields}) + "\n")
        self.stream.flush()


def make_display(*, as_json: bool) -> RunDisplay:
    """What suits where it is shown."""
    if as_json:
        return JsonDisplay(sys.stdout)
    from rich.console import Console

    console = Console(file=sys.stderr)
    return (LiveDisplay if console.is_terminal and not console.is_dumb_terminal else RunDisplay)(sys.stderr)


class _LogLines(logging.Handler):
    """Shows the runner's warnings in the display."""

    def __init__(self, display: RunDisplay) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._display.warning(self.format(record))
        except Exception:  # noqa: BLE001 - as logging does: a display that fails must not end the runner
            self.handleError(record)


def _figures(runner: Runner) -> dict[str, Any]:
    return {
        "running": runner.running,
        "waiting": runner.waiting,
        "away_seconds": runner.away_seconds,
        **asdict(runner.statistics),
    }


def _done(statistics: RunnerStatistics) -> str:
    parts = [f"{statistics.succeeded} succeeded", f"{statistics.failed} failed"]
    for name in ("cancelled", "abandoned", "untrainable", "unwritten", "refused", "spilled"):
        count = getattr(statistics, name)
        if count:
            parts.append(f"{count} {name}")
    return ", ".join(parts)
