"""What credit is worth: the example teams trained with flat and with role-aware advantages, on the same budget of rollouts.

python benchmarks/learning.py [--cells PATTERN …] [--seeds N] [--work DIR] [--set KEY=VALUE …] [--json FILE] [--list]
python benchmarks/learning.py --tables FILE … [--plots DIR]

A cell is ``TASK/VARIANT/SEED``, one ``coterie train`` in a folder of its own under ``--work``. A cell that is done is not run
again, one that was cut off goes on: all cells take hours on two cores, so run parts of them by and by, on one machine or
several, each with a JSON file. ``--tables`` joins such files. ``learn/cells.py`` lists tasks and variants.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from learn.cells import all_cells
from learn.running import CellFailedError, figures_of, run_cell
from learn.tables import joined, tables, write_plots


def main() -> int:
    """Run what was chosen and is not done, and write what is done."""
    given = arguments()
    if given.tables:
        runs = joined(given.tables)
        print(tables(runs))
        for path in write_plots(runs, given.plots) if given.plots else []:
            print(f"wrote {path}", file=sys.stderr)
        return 0
    changes = dict(map(change, given.changes))
    chosen = [cell for cell in all_cells(given.seeds) if any(fnmatch(str(cell), pattern) for pattern in given.cells)]
    if not chosen:
        print(f"No cell is called {' or '.join(given.cells)}. --list says what there is.", file=sys.stderr)
        return 2
    failed = 0
    for number, cell in enumerate(chosen, 1):
        done = figures_of(given.work, cell, changes) is not None
        if given.list or done:
            print(f"[{number}/{len(chosen)}] {cell}{' is done' if done else ''}", flush=True)
            continue
        print(f"[{number}/{len(chosen)}] {cell} …", flush=True)
        began = time.monotonic()
        try:
            run_cell(given.work, cell, changes)
        except CellFailedError as error:
            failed += 1
            print(f"  {error}", file=sys.stderr, flush=True)
            continue
        finally:
            if given.json:
                write(given, changes)
        found = figures_of(given.work, cell, changes)
        if found is None:
            failed += 1
            print("  the example changed meanwhile: run the cell again.", file=sys.stderr, flush=True)
            continue
        figures = found["figures"]
        print(
            f"  success {figures['success_before']:.3f} → {figures['success_after']:.3f}"
            f" in {time.monotonic() - began:.0f} s",
            flush=True,
        )
    if given.json:
        write(given, changes)
    runs = [run for cell in chosen if (run := figures_of(given.work, cell, changes))]
    if runs and not given.list:
        print(f"\n{tables(runs)}")
    return 1 if failed else 0


def write(given: argparse.Namespace, changes: dict[str, Any]) -> None:
    """All cells of the work folder that are done, chosen now or earlier."""
    runs = [run for cell in all_cells(given.seeds) if (run := figures_of(given.work, cell, changes))]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    given.json.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


def change(text: str) -> tuple[str, Any]:
    """``key=value``, the value as YAML."""
    key, _, value = text.partition("=")
    return key, yaml.safe_load(value)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="PATTERN", help="such as 'manager_workers/*/0'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/learning"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="in every cell")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true", help="say which cells there are and which are done")
    parser.add_argument("--tables", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
