"""The report of a run that tuned prompts: a real run of a scripted team, told on the terminal, as a page and as JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from loop_parts import Told
from planted_team import LEARNED, SEED, SIGNS, answer, team_config, write_team
from rich.console import Console
from small_run import NASTY

import coterie
from coterie.testing import ScriptedModel
from coterie.vocabulary import JSON, Run, RunState
from coterie_trainers.prompts import optimise
from coterie_trainers.prompts.study import Candidate, Study
from coterie_trainers.report import make_report
from coterie_trainers.report.tuning import TuningFigures
from coterie_trainers.report.wording import visible

SOME = {**SEED, "coder": f"{SEED['coder']} {SIGNS}"}
"""Half of what can be learned."""


async def knows(study: Study) -> Sequence[Candidate]:
    """An optimiser that knows the answer, and tries half of it first."""
    half = Candidate(SOME, parents=(study.seed.id,), author="optimiser:knows", why={"coder": "signs were wrong"})
    await study.evaluate(half, study.train)
    whole = Candidate(
        LEARNED,
        parents=(half.id,),
        author="optimiser:knows",
        why={"coder": "signs were wrong", "planner": f"units were missing {NASTY}"},
    )
    return [whole, half]


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: ScriptedModel) -> tuple[Path, Run]:
    """A folder with a finished run, for all tests."""
    folder = write_team(tmp_path_factory.mktemp("team"), model.base_url, tasks=4)
    config = team_config(model.base_url, selection={"test_samples": 1, "gate": "none"}, budget={"rollouts": 60})
    run = optimise("app.py:team", config, folder=folder, work=folder / "work", progress=Told(), optimiser=knows)
    return folder, asyncio.run(run)


@pytest.fixture
def tuned(tmp_path: Path, finished: tuple[Path, Run]) -> tuple[Path, Run]:
    """A work folder that the test may change, and its run."""
    folder, run = finished
    return Path(shutil.copytree(folder / "work", tmp_path / "work")), run


async def reported(work: Path, run: Run, *, width: int = 220) -> tuple[TuningFigures, str, dict[str, JSON], str]:
    """The figures, what the terminal shows, the JSON, the page."""
    shown = StringIO()
    figures = await make_report(
        str(work / "store.db"),
        run.id,
        json_file=work / "report.json",
        console=Console(file=shown, width=width, color_system=None),
    )
    assert isinstance(figures, TuningFigures)
    written = json.loads((work / "report.json").read_text(), parse_constant=pytest.fail)
    return figures, shown.getvalue(), written, (work / "report.html").read_text(encoding="utf-8")


async def test_each_prompt_is_told_with_its_change_and_why_and_what_it_gained(tuned: tuple[Path, Run]) -> None:
    work, run = tuned
    figures, shown, written, page = await reported(work, run)
    assert figures.taken is True
    assert "went from 0.250 to 1.000: the winner was taken" in shown
    assert "measured together" in shown

    coder = written["prompts"]["coder"]
    assert (coder["before"], coder["after"]) == (SEED["coder"], LEARNED["coder"])
    assert (coder["why"], coder["author"], coder["status"]) == ("signs were wrong", "optimiser:knows", "active")
    assert coder["diff"] == ["@@ -1 +1 @@", f"-{SEED['coder']}", f"+{LEARNED['coder']}"]
    for text in (
        "signs were wrong",
        f"-{SEED['coder']}",
        f"+{LEARNED['coder']}",
        f"version 1 → {coder['version_after']}",
    ):
        assert text in shown

    assert (written["test_before"], written["test_after"], written["test_gain"]) == (0.25, 1.0, 0.75)
    low, high = written["test_gain_interval"]
    assert low <= 0.75 <= high
    # The team rewards the planner itself, on half of the tasks at first.
    planner = written["roles"]["planner"]
    assert (planner["before"], planner["after"], planner["gain"]) == (0.5, 1.0, 0.5)
    assert set(written["roles"]) == {"planner"}
    assert Page(page).text.count("signs were wrong") == 1


async def test_candidates_and_budget_are_told(tuned: tuple[Path, Run]) -> None:
    work, run = tuned
    figures, shown, written, _ = await reported(work, run)
    by_id = {one.id: one for one in figures.candidates}
    half = by_id[Candidate(SOME).id]
    assert (half.means["train"], half.rollouts["train"]) == (0.5, 4)
    winner, seed = by_id[Candidate(LEARNED).id], by_id[Candidate(SEED).id]
    assert (winner.fate, seed.fate) == ("the winner", "as it was")
    assert (winner.means["test"], seed.means["test"]) == (1.0, 0.25)
    assert figures.candidates[0] is winner
    assert written["budget"] == {"rollouts": 60}
    spent = sum(written["rollouts_by_split"].values())
    assert written["spent"]["rollouts"] == spent
    assert f"{spent} of 60 rollouts" in shown
    assert f"coterie prompts diff coder@1 coder@{written['prompts']['coder']['version_after']}" in shown
    assert "coterie prompts activate coder@1" in shown


async def test_flags_and_text_of_models_do_no_harm(tuned: tuple[Path, Run]) -> None:
    work, run = tuned
    flags = {"coder": ["it holds the answer of task t1", NASTY]}
    async with coterie.connect(work / "store.db") as store:
        await store.save_run(replace(run, summary={**run.summary, "flags": flags}))
    _, shown, written, source = await reported(work, run)
    assert written["flags"] == [f"coder: {flag}" for flag in flags["coder"]]
    assert "! coder: it holds the answer of task t1" in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    page = Page(source)
    assert "script" not in page.tags
    assert visible(NASTY) in page.text


async def test_whether_texts_were_looked_at_is_told(tuned: tuple[Path, Run]) -> None:
    work, run = tuned
    for summary, flags, says in (
        ({**run.summary, "flags": []}, [], True),
        ({name: value for name, value in run.summary.items() if name != "flags"}, None, False),
    ):
        async with coterie.connect(work / "store.db") as store:
            await store.save_run(replace(run, summary=summary))
        _, shown, written, _ = await reported(work, run)
        assert written["flags"] == flags
        assert ("no text leaks answers" in shown) is says


async def test_a_run_that_is_not_finished_tells_what_it_has(tuned: tuple[Path, Run]) -> None:
    work, run = tuned
    async with coterie.connect(work / "store.db") as store:
        await store.save_run(replace(run, state=RunState.STOPPED, finished_ns=None, summary={}))
    figures, shown, written, page = await reported(work, run, width=80)
    assert "The search was stopped after" in shown
    assert (written["taken"], written["prompts"], written["test_gain"]) == (None, {}, None)
    assert len(figures.candidates) == 3
    assert written["spent"]["rollouts"] > 0
    assert "goes on where it stopped" in Page(page).text
    assert max(map(len, shown.splitlines())) <= 80


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
