"""Progress in lines for logs and in bars on a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable

from coterie_trainers.progress_display import LineProgress, make_progress


def lines_of(tell: Callable[[LineProgress], None], **options: float) -> list[str]:
    stream = io.StringIO()
    tell(LineProgress(stream, **options))
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    return [line[9:] for line in lines]


def test_a_stream_that_is_no_terminal_gets_lines():
    assert isinstance(make_progress(io.StringIO()), LineProgress)


def test_a_fast_stage_writes_its_begin_and_its_end_only():
    def tell(progress: LineProgress) -> None:
        progress.stage("training", 100)
        for step in range(100):
            progress.advance(1, success=step / 100)
        progress.stage("measuring")
        progress.close()
        progress.close()

    began, ended, *rest = lines_of(tell)
    assert began == "training …"
    assert re.fullmatch(r"training 100/100 success 0.99 \(done, \d+\.\d s\)", ended)
    assert [line.split(" (")[0] for line in rest] == ["measuring …", "measuring"]


def test_a_slow_stage_writes_now_and_then():
    def tell(progress: LineProgress) -> None:
        progress.stage("training", 50)
        for _ in range(10):
            time.sleep(0.02)
            progress.advance(1)

    assert 2 <= len(lines_of(tell, seconds_between_lines=0.05)) <= 6


def test_a_stage_that_was_cut_off_is_not_called_done():
    def tell(progress: LineProgress) -> None:
        progress.stage("training", 3)
        progress.advance(2)
        progress.close()

    assert re.fullmatch(r"training 2/3 \(\d\.\d s\)", lines_of(tell)[-1])


def test_notes_and_warnings_come_at_once_and_warnings_stand_out():
    def tell(progress: LineProgress) -> None:
        progress.note("resuming")
        progress.warn("two\nlines")

    assert lines_of(tell) == ["resuming", "WARNING: two", "lines"]


def test_on_a_terminal_there_are_bars_and_model_text_is_no_markup():
    program = (
        "from coterie_trainers.progress_display import make_progress\n"
        "p = make_progress()\n"
        "p.stage('warm [bold]start', 4)\n"
        "p.advance(4, success=0.5, word='[red]x')\n"
        "p.warn('careful [/nothing]')\n"
        "p.stage('measuring')\n"
        "p.close()\n"
    )
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stderr=theirs,
            stdin=subprocess.DEVNULL,
            timeout=60,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
        )
        shown = os.read(ours, 1_000_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "warm [bold]start" in plain
    assert "4/4" in plain
    assert "success 0.5  word [red]x" in plain
    assert "WARNING: careful [/nothing]" in plain
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"
