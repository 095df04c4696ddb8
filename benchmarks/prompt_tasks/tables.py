"""The tables of ``docs/prompts-benchmark.md``, from the JSON that ``prompts.py`` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie_trainers.intervals import Interval, difference_interval, mean_interval
from prompt_tasks.cells import ARMS

Run = Mapping[str, Any]
COMPARED = (
    ("gepa", "gepa_trace"),
    ("contrast", "gepa_trace"),
    ("gepa", "apo"),
    ("contrast", "apo"),
    ("gepa_perfect_reader", "gepa_trace_perfect_reader"),
)
"""Pairs of arms of which the first is meant to do better."""


def tables(figures: Mapping[str, Any]) -> str:
    """Everything that was measured, as markdown."""
    sections = []
    runs = figures.get("lessons") or []
    if runs:
        sections += [
            "### Over all tasks\n\n" + overall(runs),
            "### Differences on the same tasks and seeds\n\n" + differences(runs),
            "### Task by task: share of lessons found / held-out success\n\n" + by_task(runs),
        ]
    if figures.get("loop"):
        sections.append("### The tuning loop\n\n" + loop(figures["loop"]))
    if figures.get("throughput"):
        sections.append("### Throughput\n\n" + throughput(figures["throughput"]))
    return "\n\n".join(sections)


def overall(runs: Sequence[Run]) -> str:
    """A row an arm: means over tasks and seeds."""
    rows = []
    for arm in _arms(runs):
        own = [run for run in runs if run["arm"] == arm]
        rows.append(
            [
                f"`{arm}`",
                f"{len({run['task'] for run in own})} × {len({run['seed'] for run in own})}",
                _told(mean_interval(_values(own, share_found))),
                _told(mean_interval(_values(own, success))),
                f"{_mean([run['other_lines'] for run in own]):.1f}",
                f"{_mean([run['spent']['rollouts'] for run in own]):.0f}",
                f"{_mean([run['reflections'] for run in own]):.0f}",
            ]
        )
    head = ["arm", "tasks × seeds", "lessons found", "held-out success", "other lines added", "rollouts", "reflections"]
    return _table(head, rows)


def differences(runs: Sequence[Run]) -> str:
    """The arms that are to be compared, paired by task and seed."""
    rows = []
    for better, worse in COMPARED:
        pairs = [
            {(run["task"], run["seed"]): run for run in runs if run["arm"] == arm and run["after"] is not None}
            for arm in (better, worse)
        ]
        both = pairs[0].keys() & pairs[1].keys()
        if not both:
            continue
        row = [f"`{better}` less `{worse}`", str(len(both))]
        for figure in (share_found, success):
            first, second = ({f"{key}": [figure(side[key])] for key in sorted(both)} for side in pairs)
            row.append(_told(difference_interval(second, first), signed=True))
        rows.append(row)
    return _table(["difference", "pairs", "lessons found", "held-out success"], rows)


def by_task(runs: Sequence[Run]) -> str:
    """A row a task, a column an arm."""
    arms = _arms(runs)
    rows = []
    for task in dict.fromkeys(run["task"] for run in runs):
        row = [f"`{task}`"]
        for arm in arms:
            own = [run for run in runs if (run["task"], run["arm"]) == (task, arm)]
            row.append(f"{_mean(map(share_found, own)):.2f} / {_mean(map(success, own)):.2f}" if own else "–")
        rows.append(row)
    return _table(["task", *(f"`{arm}`" for arm in arms)], rows)


def loop(figures: Mapping[str, Any]) -> str:
    """Ours beside the peer."""
    rows = [
        [name, str(one["calls"]), str(one["reflections"]), f"{one['seconds']:.2f}"]
        for name, one in figures.items()
        if one is not None
    ]
    return _table(["", "LLM calls", "of them reflections", "seconds"], rows)


def throughput(figures: Sequence[Mapping[str, Any]]) -> str:
    """A row a kind of team."""
    rows = [
        [
            str(one["roles"]),
            str(one["at_once"]),
            f"{one['answer_ms']:.0f}",
            str(one["rollouts"]),
            f"{one['ideal_seconds']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['share_of_ideal']:.1%}",
            f"{one['ideal_seconds'] / one['alone_seconds']:.1%}",
        ]
        for one in figures
    ]
    head = [
        "calls a rollout",
        "at once",
        "model answers in, ms",
        "rollouts",
        "ideal, s",
        "taken, s",
        "of the ideal",
        "the team alone",
    ]
    return _table(head, rows)


def share_found(run: Run) -> float:
    """Of the planted lessons, those that stand in the right role's prompt at the end."""
    return len(run["found"]) / int(run["lessons"])


def success(run: Run) -> float:
    """On the held-out test."""
    return float(run["after"])


def _values(runs: Sequence[Run], figure: Any) -> dict[str, list[float]]:
    """Each run by itself: an interval over tasks and seeds, both of which might have been others."""
    return {f"{run['task']}/{run['seed']}": [figure(run)] for run in runs if run["after"] is not None}


def _arms(runs: Sequence[Run]) -> list[str]:
    there = {run["arm"] for run in runs}
    return [arm for arm in ARMS if arm in there]


def _mean(values: Any) -> float:
    several = list(values)
    return sum(several) / len(several)


def _told(interval: Interval, *, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])
