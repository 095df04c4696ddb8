"""What the prompt benchmark makes of its runs: cells, figures, tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from prompt_tasks.all_tasks import ALL
from prompt_tasks.cells import ARMS, all_cells
from prompt_tasks.running import NO_EXAMPLES, config_of, figures
from prompt_tasks.tables import tables

from coterie_trainers.prompts import optimisers

INVOICES = ALL["invoices"]


def run_of(arm: str, seed: int, found: int, after: float) -> dict[str, Any]:
    texts = [lesson.text for lesson in INVOICES.lessons[:found]]
    return {
        "task": "invoices",
        "arm": arm,
        "seed": seed,
        "lessons": 2,
        "found": texts,
        "other_lines": 1,
        "after": after,
        "spent": {"rollouts": 150},
        "reflections": 10,
    }


def test_every_arm_is_an_optimiser_with_settings_that_it_knows(tmp_path: Path) -> None:
    cells = list(all_cells(1))
    assert {cell.arm for cell in cells} == set(ARMS)
    for cell in cells:
        config = config_of(cell, ALL[cell.task], "http://127.0.0.1:1/v1", tmp_path, rollouts=200)
        assert set(config.prompts) >= set(ALL[cell.task].prompts)
        optimisers.get(config.optimiser_name, config.optimiser_settings)


def test_seeds_differ_in_nothing_but_the_seed(tmp_path: Path) -> None:
    first, second = (
        config_of(cell, ALL[cell.task], "http://127.0.0.1:1/v1", tmp_path, rollouts=200)
        for cell in all_cells(2)
        if (cell.task, cell.arm) == ("orders", "apo")
    )
    assert first.seed != second.seed
    assert first.model_copy(update={"seed": 0, "name": ""}) == second.model_copy(update={"seed": 0, "name": ""})


def test_lessons_count_in_their_own_roles_prompt_only() -> None:
    dates, amounts = INVOICES.lessons
    texts = dict(INVOICES.prompts)
    texts["reader"] += f"\n{dates.text}"
    texts["booker"] += f"\n{amounts.text}"
    found = figures(INVOICES, texts, summary_of(before=0.25, after=0.5))
    assert found["found"] == [dates.text]
    assert found["other_lines"] == 1
    assert (found["before"], found["after"]) == (0.25, 0.5)


def test_an_example_that_shows_it_teaches_a_lesson() -> None:
    texts = {**INVOICES.prompts, "reader/examples": NO_EXAMPLES}
    assert figures(INVOICES, texts, summary_of(0.2, 0.2))["found"] == []
    texts["reader/examples"] = "supplier: Ödman\ndate: 2026-02-03\namount: 12.00"
    assert figures(INVOICES, texts, summary_of(0.2, 0.5))["found"] == [INVOICES.lessons[0].text]


def test_the_tables_have_means_and_paired_differences() -> None:
    runs = [run_of("gepa", seed, 2, 1.0) for seed in range(3)] + [run_of("apo", seed, 1, 0.5) for seed in range(3)]
    text = tables({"lessons": runs})
    assert "| `gepa` | 1 × 3 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | 1.0 | 150 | 10 |" in text
    assert "| `gepa` less `apo` | 3 | +0.50 (+0.50 to +0.50) | +0.50 (+0.50 to +0.50) |" in text
    assert "| `invoices` | 1.00 / 1.00 | 0.50 / 0.50 |" in text


def test_the_tables_of_loop_and_throughput_leave_out_a_peer_that_was_not_run() -> None:
    loop = {"coterie": {"calls": 90, "reflections": 30, "seconds": 1.5}, "agentlightning": None}
    speed = {
        "roles": 2,
        "at_once": 32,
        "answer_ms": 200.0,
        "rollouts": 320,
        "ideal_seconds": 4.0,
        "seconds": 5.0,
        "share_of_ideal": 0.8,
        "alone_seconds": 4.4,
    }
    text = tables({"loop": loop, "throughput": [speed]})
    assert "| coterie | 90 | 30 | 1.50 |" in text
    assert "agentlightning" not in text
    assert "| 2 | 32 | 200 | 320 | 4.00 | 5.00 | 80.0% | 90.9% |" in text


def summary_of(before: float, after: float) -> Mapping[str, Any]:
    return {"test_before": {"value": before}, "test_after": {"value": after}, "val": {}, "spent": {"rollouts": 100}}
