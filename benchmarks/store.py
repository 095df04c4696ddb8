"""How fast the store takes spans, gives out work and answers, with every write acknowledged on disk, beside the peer.

python benchmarks/store.py [--stores sqlite,postgresql,http] [--suites …] [--rounds N] [--peer PYTHON] [--json FILE]

The peer is agentlightning 0.3.0 with its in-memory store (beside SQLite and PostgreSQL, which keep what they acknowledge)
and with its HTTP server (beside ours). Its pins contradict ours, so it has an environment of its own: ``--peer`` names its
Python; by default one is made from ``requirements/bench-store-peer.txt``. ``--peer none`` leaves it out.

Every suite runs in a new process for each store; the stores take turns, ``--rounds`` times. A figure is the median of
its rounds. What the disk allows is measured in the same run: no store that waits for it can do more.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facts.machine import machine
from peers.environments import peer_python
from stores import disk

STORES = ("sqlite", "postgresql", "http")
SUITES = ("ingest", "lifecycle", "query", "memory")
PEER_OF = {"sqlite": "inmemory", "postgresql": "inmemory", "http": "http"}
SECONDS_A_SUITE = 3600

Found = dict[str, dict[str, dict[str, float]]]
"""Store to what was measured to its figures."""


@dataclass(frozen=True)
class Target:
    """What a store must reach: so many times the peer's figure, or a limit."""

    store: str
    what: str
    times: float | None = None
    """Times the peer's figure of the same name, or of ``peer_what``."""
    peer_what: str | None = None
    figure: str = "per_s"
    at_most: float | None = None


CYCLE = "full cycle, 10 x add_span"
TARGETS = (
    Target("sqlite", "add_span 16 concurrent", 3),
    Target("sqlite", "add_many 100", 5),
    Target("sqlite", "enqueue serial", 1),
    Target("sqlite", "lease serial", 1),
    Target("sqlite", "finish serial", 1),
    Target("sqlite", "enqueue 16 concurrent", 1),
    Target("sqlite", "lease 16 concurrent", 1),
    Target("sqlite", "finish 16 concurrent", 1),
    Target("sqlite", CYCLE, 5),
    Target("sqlite", "full cycle, finish(spans of 10)", 5, peer_what=CYCLE),
    Target("http", "add_many 100", 30),
    Target("http", "otlp 100", 8),
    Target("http", "enqueue serial", 3),
    Target("http", "lease serial", 3),
    Target("http", "finish serial", 3),
    Target("http", CYCLE, 15),
    Target("http", "full cycle, finish(spans of 10)", 15, peer_what=CYCLE),
    *(Target(store, "spans of a rollout @100k", figure="p50_ms", at_most=2) for store in STORES),
    *(Target(store, "spans of a rollout @3000k", figure="p50_ms", at_most=5) for store in STORES),
    Target("http", "long rollout, all", figure="p50_ms", at_most=300),
    Target("http", "long rollout, 20", figure="p50_ms", at_most=3),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", metavar="PYTHON", help="Python of an environment with the peer, or none")
    parser.add_argument("--folder", type=Path, help="where the files lie while measuring; a temporary one by default")
    parser.add_argument("--spans", type=int, default=5000, help="spans of each figure of the suite ingest")
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument("--query-at", type=numbers, default=[10_000, 100_000], help="spans in the store")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--long-rollout", type=int, default=10_000)
    parser.add_argument("--memory-spans", type=int, default=50_000)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    sizes = {
        name: getattr(arguments, name)
        for name in ("spans", "rollouts", "query_at", "queries", "long_rollout", "memory_spans")
    }
    python = peer_python("store", arguments.peer)
    ours = chosen(arguments.stores, STORES)
    backends = [f"coterie:{kind}" for kind in ours]
    if python is not None:
        backends += [f"peer:{kind}" for kind in sorted({PEER_OF[kind] for kind in ours}, reverse=True)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        found, raw = measured(backends, chosen(arguments.suites, SUITES), arguments.rounds, sizes, python, Path(name))
    print_all(found, raw)
    if arguments.json:
        facts = {"rounds": arguments.rounds, "sizes": sizes, "machine": machine() | {"sqlite": sqlite3.sqlite_version}}
        arguments.json.write_text(json.dumps({"figures": found, "disk": raw, **facts}, indent=1) + "\n")


def measured(
    backends: Sequence[str], suites: Sequence[str], rounds: int, sizes: dict[str, Any], peer: str | None, folder: Path
) -> tuple[Found, dict[str, float]]:
    """The medians of all rounds, and of what the disk did in between."""
    all_figures: dict[str, dict[str, dict[str, list[float]]]] = {backend: {} for backend in backends}
    disk_figures: dict[str, list[float]] = {}
    for number in range(rounds):
        for suite in suites:
            for what, rate in disk.raw(folder).items():
                disk_figures.setdefault(what, []).append(rate)
            for backend in backends:
                python = sys.executable if backend.startswith("coterie") else str(peer)
                for what, figures in run(python, backend, suite, sizes, folder / f"{number}").items():
                    of_what = all_figures[backend].setdefault(what, {})
                    for figure, value in figures.items():
                        of_what.setdefault(figure, []).append(value)
    found = {
        backend: {
            what: {figure: statistics.median(values) for figure, values in figures.items()}
            for what, figures in of_backend.items()
        }
        for backend, of_backend in all_figures.items()
    }
    return found, {what: statistics.median(rates) for what, rates in disk_figures.items()}


def run(python: str, backend: str, suite: str, sizes: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """One suite on one store in a process of its own."""
    with tempfile.TemporaryDirectory(prefix=folder.name, dir=folder.parent) as own:
        command = [python, "-m", "stores.worker", backend, suite, json.dumps(sizes), own]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env=environment, timeout=SECONDS_A_SUITE, text=True
        )
    result: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_all(found: Found, raw: dict[str, float]) -> None:
    """Every figure, and each target with what was reached."""
    print("\nThe disk alone, transactions a second, each waited for:")
    for what, rate in raw.items():
        print(f"  {what:48s} {rate:>10,.0f}")
    for backend, all_figures in found.items():
        print(f"\n{backend}")
        for what, figures in all_figures.items():
            print(f"  {what:48s} " + "  ".join(f"{name} {value:,.6g}" for name, value in figures.items()))
    print("\nTargets")
    for line in judged(found):
        print(f"  {line}")


def judged(found: Found) -> Iterator[str]:
    """A line for each target of which there are figures."""
    for target in TARGETS:
        figures = found.get(f"coterie:{target.store}", {}).get(target.what)
        if figures is None:
            continue
        ours = figures[target.figure]
        if target.at_most is not None:
            reached, aim = f"{ours:,.2f} ms", f"at most {target.at_most:g} ms"
            met = ours <= target.at_most
        else:
            assert target.times is not None
            what = target.peer_what or target.what
            peer = found.get(f"peer:{PEER_OF[target.store]}", {}).get(what, {}).get(target.figure)
            if peer is None:
                continue
            reached, aim = f"{ours:,.0f}/s = {ours / peer:.1f} x {peer:,.0f}/s", f"at least {target.times:g} x"
            met = ours >= target.times * peer
        yield f"{target.store:11s} {target.what:45s} {reached:34s} {aim:18s} {'met' if met else 'MISSED'}"
    for store in STORES:
        of_store = found.get(f"coterie:{store}", {})
        sizes = [what for what in of_store if what.startswith("spans of a rollout @")]
        for what in sizes:
            p50, p99 = of_store[what]["p50_ms"], of_store[what]["p99_ms"]
            yield f"{store:11s} {what + ', p99 / p50':45s} {p99 / p50:<34.1f} at most 5           {told(p99 <= 5 * p50)}"
        if len(sizes) > 1:
            growth = of_store[sizes[-1]]["p50_ms"] / of_store[sizes[-2]]["p50_ms"]
            what = f"growth from {sizes[-2].partition('@')[2]} to {sizes[-1].partition('@')[2]}"
            yield f"{store:11s} {what:45s} {growth:<34.2f} below 2            {told(growth < 2)}"
        for what, figures in of_store.items():
            if "bytes_per_span" in figures:
                value = figures["bytes_per_span"]
                yield f"{store:11s} {what:45s} {value:<34.1f} below 100          {told(value < 100)}"


def told(met: bool) -> str:
    return "met" if met else "MISSED"


def chosen(given: str, allowed: Sequence[str]) -> list[str]:
    names = [name for name in given.split(",") if name]
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(allowed)}")
    return names


def numbers(given: str) -> list[int]:
    return [int(number) for number in given.split(",") if number]


if __name__ == "__main__":
    main()
