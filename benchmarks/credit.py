"""How well each advantage estimator's gradient agrees with the true policy gradient, as a function of group size.

python benchmarks/credit.py [--groups 2 4 8 16 32] [--rollouts N] [--batches N] [--seeds N …] [--json FILE]
python benchmarks/credit.py --tables FILE [--plot SVG] prints the tables of docs/credit.md from such a file, and draws the plot.

Small teams with tabular softmax policies (``gradients/tasks.py``), so that every way a rollout may go can be enumerated and
the true gradient is exact. Policies are drawn anew for each seed; figures are means over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from facts.machine import machine
from gradients.exact import Model, Setting
from gradients.measuring import ALL, ESTIMATORS, agreements
from gradients.tables import plot, tables
from gradients.tasks import LINE, RUNS, TEAM

SETTINGS = {
    "line, team's reward": Setting(LINE, own=False, scales={}),
    "team, team's reward": Setting(TEAM, own=False, scales={}),
    "team, own rewards": Setting(TEAM, own=True, scales={}),
    "runs, own rewards": Setting(RUNS, own=True, scales={}),
    "team, own, one ×20": Setting(TEAM, own=True, scales={"reviewer": 20.0}),
}
SHOWN = 8
"""The group size that the second tables are for."""


def main() -> None:
    """Measure, or print tables of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="rollouts of a task")
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts of a batch, whatever the group size")
    parser.add_argument("--batches", type=int, default=100, help="batches of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a policy is drawn of each")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--tables", type=Path, help="print the tables of this file, and measure nothing")
    parser.add_argument("--plot", type=Path, help="with --tables: write the plot here")
    given = parser.parse_args()
    if given.tables:
        figures = json.loads(given.tables.read_text())["figures"]
        print(tables(figures, _shown(list(next(iter(figures.values()))))))
        if given.plot:
            given.plot.write_text(plot(figures))
        return
    if wrong := [size for size in given.groups if size < 2 or given.rollouts % size]:
        parser.error(f"--groups {wrong[0]}: a group has at least 2 rollouts and divides --rollouts {given.rollouts}")
    began = time.monotonic()
    figures = {name: _measure(SETTINGS[name], given) for name in given.settings}
    print(tables(figures, _shown([str(size) for size in given.groups])))
    if given.json:
        sizes = {name: getattr(given, name) for name in ("groups", "rollouts", "batches", "seeds")}
        facts = machine() | {"seconds": round(time.monotonic() - began)}
        given.json.write_text(json.dumps({"figures": figures, "sizes": sizes, "machine": facts}, indent=1) + "\n")


def _measure(setting: Setting, given: argparse.Namespace) -> dict[str, Any]:
    """Group size → estimator → role or ``all`` → figure."""
    found: dict[str, list[Mapping[str, Any]]] = {str(size): [] for size in given.groups}
    for seed in given.seeds:
        model = Model(setting, seed=seed)
        for size in given.groups:
            made = agreements(
                model, size, rollouts=given.rollouts, batches=given.batches, names=ESTIMATORS, seed=1000 * seed + size
            )
            found[str(size)].append(
                {name: {part: asdict(each) for part, each in parts.items()} for name, parts in made.items()}
            )
            best = max(made, key=lambda name: made[name][ALL].cosine)
            print(f"  seed {seed}, groups of {size}: best {best}, {made[best][ALL].cosine:.2f}", flush=True)
    return {size: _mean(each) for size, each in found.items()}


def _mean(trees: Sequence[Any]) -> Any:
    """The mean of equal trees of numbers, leaf by leaf."""
    if isinstance(trees[0], Mapping):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))


def _shown(sizes: Sequence[str]) -> str:
    return str(SHOWN) if str(SHOWN) in sizes else sizes[-1]


if __name__ == "__main__":
    main()
