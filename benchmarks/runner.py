"""How soon an idle runner begins what is queued, and how well it fills its slots, on each kind of store.

python benchmarks/runner.py [--rollouts N] [--slots N] [--seconds S] [--idle N] [--stores LIST] [--peer PYTHON] [--json FILE]

SQLite is used in this process, as training does it; PostgreSQL and the server (``coterie serve``) run in processes of their
own, and the caller that queues and the runner have a connection each. A rollout sleeps for ``--seconds``; the ideal is
rollouts × seconds / slots. ``--peer`` names a Python that has agentlightning, whose runners then do the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facts.machine import machine
from stores.served import Served, coterie_serve, postgresql

import coterie
from coterie.runner import Runner
from coterie.scope import current_scope
from coterie.store.base import Store
from coterie.vocabulary import Mode, Rollout, RolloutState, Task

PEER = Path(__file__).parent / "peers" / "agentlightning_runner.py"

FIRST_LINES: dict[str, int] = {}


@coterie.rollout
async def sleeps(task: Task) -> float:
    """Note the time and sleep."""
    scope = current_scope()
    assert scope is not None
    FIRST_LINES[scope.rollout_id] = time.perf_counter_ns()
    await asyncio.sleep(task.input)
    return 1.0


async def idle_delays_ms(store: Store, count: int) -> list[float]:
    """From the call of enqueue to the function's first line, a rollout at a time, with a runner that waits."""
    delays = []
    for _ in range(count):
        await asyncio.sleep(0.1)
        rollout = Rollout("nothing", mode=Mode.VAL)
        began = time.perf_counter_ns()
        await store.enqueue([rollout])
        await store.wait([rollout.id])
        delays.append((FIRST_LINES[rollout.id] - began) / 1e6)
    return delays


async def seconds_for(store: Store, count: int) -> float:
    """From the call of enqueue to the end of the last of so many rollouts."""
    rollouts = [Rollout("sleep", mode=Mode.VAL) for _ in range(count)]
    began = time.perf_counter()
    await store.enqueue(rollouts)
    ended = await store.wait([rollout.id for rollout in rollouts])
    assert all(rollout.state is RolloutState.SUCCEEDED for rollout in ended), ended[0].reason
    return time.perf_counter() - began


async def measure(served: Served, given: argparse.Namespace) -> dict[str, float]:
    """The figures of one store."""
    caller = await coterie.connect(served.url, token=served.token)
    own = caller if served.url.startswith("sqlite") else await coterie.connect(served.url, token=served.token)
    async with caller, own:
        await caller.add_tasks([Task("nothing", 0.0), Task("sleep", given.seconds)])
        async with Runner(own, sleeps, concurrency=given.slots):
            await seconds_for(caller, given.slots)
            delays = await idle_delays_ms(caller, given.idle)
            took = await seconds_for(caller, given.rollouts)
    return {
        "enqueue_to_first_line_ms_p50": round(statistics.median(delays), 2),
        "enqueue_to_first_line_ms_max": round(max(delays), 2),
        "rollouts_per_s": round(given.rollouts / took, 2),
        "share_of_ideal": round(given.rollouts * given.seconds / given.slots / took, 4),
    }


@contextmanager
def sqlite(folder: Path) -> Iterator[Served]:
    """A file."""
    yield Served(f"sqlite:///{folder / 'runner.db'}", os.getpid())


STORES = {"sqlite": sqlite, "postgresql": postgresql, "http": coterie_serve}


def measure_peer(python: str, given: argparse.Namespace) -> dict[str, float]:
    """The peer's figures, from an environment of its own."""
    sizes = [
        "--rollouts",
        given.rollouts,
        "--slots",
        given.slots,
        "--seconds",
        given.seconds,
        "--idle",
        given.peer_idle,
    ]
    done = subprocess.run([python, PEER, *map(str, sizes)], capture_output=True, text=True, timeout=1200)
    figures = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not figures:
        sys.exit(f"The peer gave no figures:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(figures[-1])
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.35, help="how long a rollout sleeps")
    parser.add_argument("--idle", type=int, default=50, help="rollouts that are queued one by one")
    parser.add_argument("--stores", default=",".join(STORES), help="which kinds of store")
    parser.add_argument("--peer", help="a Python with agentlightning 0.3.0; left out, only ours is measured")
    parser.add_argument(
        "--peer-idle", type=int, default=5, help="the same as --idle for the peer, which polls every 5 s"
    )
    parser.add_argument("--folder", type=Path, help="where the files lie while measuring; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in given.stores.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder, STORES[name](Path(folder)) as served:
            figures[name] = asyncio.run(measure(served, given))
        _show(name, figures[name])
    if given.peer:
        figures["agentlightning"] = measure_peer(given.peer, given)
        _show("agentlightning", figures["agentlightning"])
    if given.json:
        sizes = {name: getattr(given, name) for name in ("rollouts", "slots", "seconds", "idle")}
        given.json.write_text(json.dumps({"figures": figures, "sizes": sizes, "machine": machine()}, indent=1) + "\n")


def _show(name: str, figures: dict[str, float]) -> None:
    print(
        f"{name:15s} first line after {figures['enqueue_to_first_line_ms_p50']:>9.2f} ms at the median, at most "
        f"{figures['enqueue_to_first_line_ms_max']:>9.2f} ms; {figures['rollouts_per_s']:>7.2f} rollouts/s, "
        f"{figures['share_of_ideal']:.1%} of the ideal",
        flush=True,
    )


if __name__ == "__main__":
    main()
