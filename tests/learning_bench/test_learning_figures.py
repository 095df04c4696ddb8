"""What the learning benchmark makes of its runs: budgets, joined files, cells that are done."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from learn import running
from learn.cells import TASKS, VARIANTS, Cell, all_cells
from learn.curves import budget_to_reach, smoothed, variant_figures
from learn.tables import joined, tables, write_plots

from coterie_trainers import advantages
from coterie_trainers.config_file import load_config


def run_of(variant: str, seed: int, successes: Sequence[float]) -> dict[str, Any]:
    """A run that was looked at every 4 steps of 80 rollouts."""
    looks = [{"step": 4 * place, "success": success} for place, success in enumerate(successes)][1:]
    figures = {
        "state": "succeeded",
        "success_before": successes[0],
        "success_after": successes[-1],
        "curve": {"train": [], "val": looks},
        "rollouts_by_mode": {"train": 320 * len(looks)},
        "steps": 4 * len(looks),
        "train_seconds": 60.0,
    }
    return {"task": "trips", "variant": variant, "seed": seed, "figures": figures}


def rising(steps: int, by: float) -> list[float]:
    return [min(0.9, 0.2 + by * place) for place in range(steps)]


def test_the_budget_lies_between_two_looks() -> None:
    assert budget_to_reach(np.array([0.0, 100, 200]), np.array([0.2, 0.4, 0.8]), 0.6) == pytest.approx(150)
    assert budget_to_reach(np.array([0.0, 100]), np.array([0.2, 0.4]), 0.1) == 0
    assert budget_to_reach(np.array([0.0, 100]), np.array([0.2, 0.4]), 0.5) == math.inf


def test_smoothing_keeps_the_start_and_a_straight_line_inside() -> None:
    smooth = smoothed(np.array([[0.0, 0.1, 0.2, 0.3, 0.4]]))
    assert smooth[0] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3])


def test_twice_as_fast_is_half_the_budget() -> None:
    runs = [run_of("flat", seed, rising(11, 0.02)) for seed in range(3)]
    runs += [run_of("role", seed, rising(11, 0.04)) for seed in range(3)]
    flat, role = variant_figures(runs, "flat")
    assert flat.variant == "flat"
    assert flat.ratio is not None
    assert flat.ratio.value == 1
    assert role.ratio is not None
    assert (role.ratio.value, role.ratio.low, role.ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert role.rollouts_P[-1] == 40 * 80


def test_a_level_baseline_needs_no_more_than_its_rise() -> None:
    runs = [run_of("flat", 0, [0.2, 0.4, 0.6, *[0.6] * 20]), run_of("role", 0, [0.2, 0.4, 0.6, *[0.6] * 20])]
    assert [each.ratio.value for each in variant_figures(runs, "flat") if each.ratio] == [1, 1]


def test_what_is_never_reached_is_told_so() -> None:
    runs = [run_of("flat", 0, rising(11, 0.05)), run_of("role", 0, rising(11, 0.01))]
    _, role = variant_figures(runs, "flat")
    assert role.ratio is not None
    assert role.ratio.value == math.inf
    assert "not reached" in tables(runs)


def test_one_seed_has_no_interval_and_no_baseline_no_ratio() -> None:
    (role,) = variant_figures([run_of("role", 0, rising(11, 0.04))], "flat")
    assert role.ratio is None
    assert role.final.low is None
    assert "| `role` | 1 | 0.20 | 0.60 | – | 60 |" in tables([run_of("role", 0, rising(11, 0.04))])


def test_files_are_joined_and_the_last_one_counts(tmp_path: Path) -> None:
    for name, runs in {
        "a.json": [run_of("flat", 0, rising(5, 0.1)), run_of("role", 0, rising(5, 0.1))],
        "b.json": [run_of("flat", 0, rising(5, 0.05)), run_of("flat", 1, rising(5, 0.1))],
    }.items():
        (tmp_path / name).write_text(json.dumps({"runs": runs}))
    runs = joined([tmp_path / "a.json", tmp_path / "b.json"])
    assert {(run["variant"], run["seed"]) for run in runs} == {("flat", 0), ("flat", 1), ("role", 0)}
    assert runs[0]["figures"]["success_after"] == pytest.approx(0.4)
    (picture,) = write_plots(runs, tmp_path / "plots")
    assert picture.name == "learning-trips.svg"
    assert picture.read_text().count("<polyline") == 2


def test_a_cell_is_done_only_as_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("manager_workers", "role", 0)
    folder = running.folder_of(tmp_path, cell)
    commands: list[list[str]] = []

    def coterie_train(command: list[str], **_: Any) -> Any:
        commands.append(command)
        (folder / "figures.json").write_text(json.dumps({"state": "succeeded"}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(running.subprocess, "run", coterie_train)
    assert running.figures_of(tmp_path, cell, {}) is None
    running.run_cell(tmp_path, cell, {})
    assert running.figures_of(tmp_path, cell, {}) is not None
    assert running.figures_of(tmp_path, cell, {"training.steps": 3}) is None
    running.run_cell(tmp_path, cell, {"training.steps": 3})
    assert "--set=training.steps=3" in commands[-1]
    assert running.figures_of(tmp_path, cell, {}) is None


def test_variants_share_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, apart = (Cell("long_horizon", *which) for which in (("flat", 0), ("state", 0), ("state", 1)))
    calls: list[bool] = []

    def coterie_train(command: list[str], **_: Any) -> Any:
        work = Path(command[command.index("--out") + 1])
        calls.append((work / "prepared.json").exists())
        (work / "data").mkdir(parents=True, exist_ok=True)
        (work / "model").mkdir(exist_ok=True)
        (work / "prepared.json").write_text("{}")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(running.subprocess, "run", coterie_train)
    for cell in (one, other, apart):
        running.run_cell(tmp_path, cell, {})
    assert calls == [False, True, False]


def test_a_cell_that_fails_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = type("Done", (), {"returncode": 3})
    monkeypatch.setattr(running.subprocess, "run", lambda *_args, **_more: failed)
    with pytest.raises(running.CellFailedError, match=r"exit code 3; see .*log\.txt"):
        running.run_cell(tmp_path, Cell("text_to_sql", "flat", 0), {})


@pytest.mark.parametrize("cell", list(all_cells(1)), ids=str)
def test_every_cell_is_a_valid_configuration(cell: Cell) -> None:
    settings = [f"{name}={json.dumps(value)}" for name, value in cell.settings({}).items()]
    config = load_config(cell.example / "config.yaml", settings)
    advantages.check(config.credit.advantage)


def test_all_tasks_have_the_baseline_and_only_known_variants() -> None:
    for plan in TASKS.values():
        assert plan.variants[0] == "flat"
        assert set(plan.variants) <= set(VARIANTS)
