"""What people and machines get: terminal, page, JSON, through the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import NASTY, RUN, Fill

from coterie.vocabulary import RunState
from coterie_trainers.report.figures import Curve, CurvePoint
from coterie_trainers.report.plot import plot_curve
from coterie_trainers.report.wording import minutes, visible

COTERIE = Path(sys.executable).with_name("coterie")


def report(*arguments: str, cwd: Path, columns: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COTERIE, "report", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_terminal_report_tells_the_result_and_survives_model_text(fill: Fill):
    work = await fill()
    shown = report(RUN, "--out", str(work), cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert "Success went from 37.5 % to 75.0 % in 4 steps" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "\u202e" not in shown.stdout
    assert "<script>alert(1)</script> [bold red]& ␛[31m" in shown.stdout, "model text is shown as it is"
    for word in (
        "filters",
        "reviewer",
        "before: lost",
        "after: won",
        "1 attempt failed",
        "/models/team",
        "vllm serve",
    ):
        assert word in shown.stdout


@pytest.mark.parametrize("columns", [40, 80, 200])
async def test_the_terminal_report_fits_its_width(fill: Fill, columns: int):
    work = await fill()
    shown = report("--out", str(work), cwd=work, columns=columns)
    assert max(map(len, shown.stdout.splitlines())) <= columns


async def test_json_has_what_machines_are_promised(fill: Fill):
    work = await fill()
    report("latest", "--out", str(work.parent), "--json", str(work / "report.json"), cwd=work)
    written = json.loads((work / "report.json").read_text(), parse_constant=pytest.fail)
    assert (written["success_before"], written["success_after"]) == (0.375, 0.75)
    assert (written["greedy_before"], written["greedy_after"]) == (0.25, 0.75)
    for name in ("success_before", "success_after", "greedy_before", "greedy_after", "success_difference"):
        low, high = written[f"{name}_interval"]
        assert low <= written[name] <= high
    assert (written["seed"], written["steps"], written["train_seconds"]) == (7, 4, 8.0)
    assert written["max_logprob_mismatch"] == 0.004
    assert written["rollouts"] == 24
    assert written["calls_by_role"] == {"coder": 63, "reviewer": 39}
    assert written["trainable_calls_missing"] == 1
    assert written["by_family"]["filters"] == {"n": 2, "before": 0.25, "after": 1.0}
    assert written["by_role"]["coder"]["reward_after"] == 0.75
    assert written["curve"]["val"][0]["step"] == 2
    assert written["paths"]["store"] == str(work / "store.db")
    assert written["paths"]["models"] == {"team": "/models/team"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects tags, text and addresses."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


async def test_the_page_is_whole_self_contained_and_escapes_model_text(fill: Fill):
    work = await fill()
    report("--out", str(work), "--html", str(work / "page.html"), cwd=work)
    source = (work / "page.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags
    assert page.addresses == []
    assert "url(" not in source
    assert "@import" not in source
    assert visible(NASTY) in page.text
    assert "Success went from 37.5 % to 75.0 %" in page.text
    assert {"svg", "title", "desc", "caption", "main", "h1"} <= set(page.tags)
    assert source.count('role="img"') == 1
    assert "prefers-color-scheme: dark" in source


async def test_the_page_lies_beside_the_store_by_default(fill: Fill):
    work = await fill(state=RunState.STOPPED, evaluations=["before"])
    shown = report("--out", str(work), cwd=work.parent)
    assert "The run was stopped after 4 steps" in shown.stdout
    assert "goes on from the last step" in shown.stdout
    Page((work / "report.html").read_text(encoding="utf-8"))


async def test_the_usual_places_are_searched_and_the_newest_run_is_latest(fill: Fill):
    work = await fill(run_id="older")
    await fill(run_id="newer", state=RunState.RUNNING, evaluations=["before"])
    nested = work.parent / "coterie-demo" / "seed-0"
    nested.parent.mkdir()
    work.rename(nested)
    assert "newer" in report(cwd=nested.parents[1]).stdout.splitlines()[0]
    assert "older" in report("older", cwd=nested.parents[1]).stdout.splitlines()[0]
    gone = report("gone", cwd=nested.parents[1])
    assert gone.returncode == 2
    assert "No run 'gone'. There are: newer, older." in gone.stderr


async def test_files_that_cannot_be_written_are_named(fill: Fill):
    work = await fill()
    for option in ("--json", "--html"):
        failed = report("--out", str(work), option, str(work / "no" / "file"), cwd=work)
        assert failed.returncode == 2
        assert f"Name another file with {option}." in failed.stderr


POINTS = st.lists(st.builds(CurvePoint, st.integers(0, 10**6), st.floats(-0.5, 1.5)), max_size=40)


@given(train=POINTS, val=POINTS, width=st.integers(1, 200))
def test_the_plot_holds_its_size_and_shows_both_kinds(train: list[CurvePoint], val: list[CurvePoint], width: int):
    plot = plot_curve(Curve(train, val), width=width)
    lines = plot.splitlines()
    if not train and not val:
        assert plot == ""
        return
    assert len(lines) == 13
    assert max(map(len, lines[:-1])) <= max(width, 17)
    assert bool(re.search("[◆◈]", plot)) == bool(val)
    assert ("·" in plot or "◈" in plot or "◆" in plot) if train else "·" not in plot


def test_a_rising_curve_rises_in_the_plot():
    rows = plot_curve(Curve([CurvePoint(step, step / 10) for step in range(11)], []), width=60).splitlines()[:11]
    assert [rows[10 - step].rindex("·") for step in range(11)] == sorted(
        rows[10 - step].rindex("·") for step in range(11)
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.99, "1 min 00 s"), (61, "1 min 01 s"), (7380, "2 h 03 min")],
)
def test_durations_in_words(seconds: float, words: str):
    assert minutes(seconds) == words
