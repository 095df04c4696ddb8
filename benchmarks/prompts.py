"""What optimisers of prompts find on teams with planted lessons, and how fast the tuning loop is.

python benchmarks/prompts.py [--parts lessons,loop,throughput] [--cells PATTERN …] [--seeds N] [--rollouts N] [--jobs N]
    [--work FILE] [--peer PYTHON|none] [--json FILE]
python benchmarks/prompts.py --tables FILE …

``lessons``: a cell is ``TASK/ARM/SEED``, one tuning run; ``prompt_tasks/cells.py`` lists the arms and ``prompt_tasks/all_tasks.py``
the tasks. What is done stands in ``--work``, a JSON line a cell, and is not run again. ``loop``: the peer's tuner and ours, the same
number of instant LLM calls. ``throughput``: many evaluations at once against a model that takes its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from facts.machine import machine
from peers.environments import peer_python
from prompt_tasks.cells import ARMS, ROLLOUTS, Cell, all_cells
from prompt_tasks.loop import PEER_CALLS, our_loop, peer_loop
from prompt_tasks.running import run_cell
from prompt_tasks.tables import tables
from prompt_tasks.throughput import measure

import coterie

PARTS = ("lessons", "loop", "throughput")


def main() -> int:
    """Run what was asked for, print the tables, write the JSON."""
    given = arguments()
    if given.tables:
        print(tables(joined(given.tables)))
        return 0
    figures: dict[str, Any] = {"machine": {"before": machine()}}
    if "lessons" in given.parts:
        figures |= {"rollouts": given.rollouts, "lessons": lessons(given)}
    if "loop" in given.parts:
        python = peer_python("prompts", given.peer)
        peer = peer_loop(python) if python else None
        asyncio.run(our_loop(rounds=1))  # Imports are not counted on either side.
        figures["loop"] = {"coterie": asyncio.run(our_loop()), "agentlightning": peer}
        if figures["loop"]["coterie"]["calls"] < (peer or {"calls": PEER_CALLS})["calls"]:
            sys.exit(f"Ours made fewer calls than the peer: {figures['loop']}. Give it more rounds.")
    if "throughput" in given.parts:
        figures["throughput"] = [
            asyncio.run(measure(roles=roles, at_once=32, answer_seconds=0.2, rounds=30, folder=given.folder))
            for roles in (1, 2)
        ]
    figures["machine"]["after"] = machine()
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{tables(figures)}")
    return 0


def lessons(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of all chosen cells, done now or before, in the order of the cells."""
    chosen = [cell for cell in all_cells(given.seeds) if any(fnmatch(str(cell), one) for one in given.cells)]
    if not chosen:
        sys.exit(f"No cell is called {' or '.join(given.cells)}. Arms: {', '.join(ARMS)}.")
    done = {key: run for key, run in done_before(given.work).items() if run["rollouts"] == given.rollouts}
    missing = [cell for cell in chosen if str(cell) not in done]
    given.work.parent.mkdir(parents=True, exist_ok=True)
    # Each process has a core's worth of Python to itself; fresh ones, since threads of ours must not be copied.
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run_one, cell, given.rollouts, given.folder) for cell in missing]
        for number, future in enumerate(as_completed(running), 1):
            run = future.result()
            done[f"{run['task']}/{run['arm']}/{run['seed']}"] = run
            with given.work.open("a") as lines:
                lines.write(json.dumps(run) + "\n")
            print(
                f"[{number}/{len(missing)}] {run['task']}/{run['arm']}/{run['seed']}: {len(run['found'])} of {run['lessons']} "
                f"lessons, success {run['before']:.2f} → {run['after']:.2f}, {run['seconds']:.0f} s",
                flush=True,
            )
    return [done[str(cell)] for cell in chosen]


def run_one(cell: Cell, rollouts: int, folder: Path | None) -> dict[str, Any]:
    """A cell in a process of the pool."""
    coterie.instrument()
    load = os.getloadavg()[0]
    run = asyncio.run(run_cell(cell, rollouts=rollouts, folder=folder))
    return {**run, "rollouts": rollouts, "load": load}


def done_before(path: Path) -> dict[str, dict[str, Any]]:
    """Cell → figures, of an earlier call with the same ``--work``."""
    if not path.exists():
        return {}
    runs = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {f"{run['task']}/{run['arm']}/{run['seed']}": run for run in runs}


def joined(files: list[Path]) -> dict[str, Any]:
    """The parts of several JSON files; of one that is in several, the last file's."""
    figures: dict[str, Any] = {}
    for file in files:
        figures |= json.loads(file.read_text())
    return figures


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="PATTERN", help="such as 'orders/gepa*/0'")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="the budget of a cell")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at once")
    parser.add_argument("--work", type=Path, default=Path("runs/prompts.jsonl"), help="what is done, a cell a line")
    parser.add_argument("--folder", type=Path, help="where stores lie while measuring; a temporary one by default")
    parser.add_argument("--peer", help="a Python with agentlightning 0.3.0, or none; an environment is made by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+", metavar="FILE")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}. There are {', '.join(PARTS)}.")
    return given


if __name__ == "__main__":
    sys.exit(main())
