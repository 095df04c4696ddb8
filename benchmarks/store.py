"""How fast the store takes spans and gives out work, on a file with every write acknowledged on disk.

python benchmarks/store.py [--folder DIR] [--spans N] [--rollouts N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import string
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import coterie
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Reward, Rollout, Span, Task

WRITERS = 16
BATCH = 100
SPANS_PER_ROLLOUT = 10


def make_spans(count: int, seed: int = 0) -> list[Span]:
    """Spans as an LLM call leaves them: about 2.8 kB of JSON with 192 token ids."""
    draw = random.Random(seed)
    letters = "".join(draw.choices(string.ascii_lowercase + "    ", k=20_000))

    def text(length: int) -> str:
        start = draw.randrange(len(letters) - length)
        return letters[start : start + length]

    return [
        Span(
            trace_id=f"{draw.getrandbits(128):032x}",
            span_id=f"{draw.getrandbits(64):016x}",
            name="chat",
            start_ns=1_700_000_000_000_000_000 + number,
            end_ns=1_700_000_000_500_000_000 + number,
            rollout_id=f"ro-{number // SPANS_PER_ROLLOUT}",
            attempt_id=f"at-{number // SPANS_PER_ROLLOUT}",
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "qwen2.5-7b",
                "gen_ai.response.id": f"chatcmpl-{number}",
                "gen_ai.input.messages": text(700),
                "gen_ai.output.messages": text(350),
                "coterie.tokens.prompt": [draw.randrange(150_000) for _ in range(128)],
                "coterie.tokens.response": [draw.randrange(150_000) for _ in range(64)],
            },
        )
        for number in range(count)
    ]


async def per_second(count: int, work: Callable[[], Awaitable[None]]) -> float:
    """Items a second."""
    start = time.perf_counter()
    await work()
    return round(count / (time.perf_counter() - start), 1)


async def spans_one_by_one(store: Store, spans: Sequence[Span]) -> float:
    """Sixteen writers, one span a call."""
    left = iter(spans)

    async def writer() -> None:
        for span in left:
            await store.add_spans([span])

    async def all_writers() -> None:
        await asyncio.gather(*(writer() for _ in range(WRITERS)))

    return await per_second(len(spans), all_writers)


async def spans_in_batches(store: Store, spans: Sequence[Span]) -> float:
    """One writer, a hundred spans a call."""

    async def writer() -> None:
        for start in range(0, len(spans), BATCH):
            await store.add_spans(spans[start : start + BATCH])

    return await per_second(len(spans), writer)


async def spans_read(store: Store, count: int) -> float:
    """All spans of one attempt a call."""

    async def reader() -> None:
        for number in range(count // SPANS_PER_ROLLOUT):
            await store.get_spans([f"at-{number}"])

    return await per_second(count, reader)


async def cycles(store: Store, count: int) -> float:
    """Sixteen workers: lease one rollout, finish it with a reward."""
    await store.add_tasks([Task("t", {"question": "?"})])
    await store.enqueue([Rollout("t") for _ in range(count)])

    async def worker(name: str) -> None:
        while leases := await store.lease(name):
            (lease,) = leases
            reward = Reward(lease.rollout.id, lease.attempt.id, 1.0)
            await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, rewards=[reward])

    async def all_workers() -> None:
        await asyncio.gather(*(worker(f"w{number}") for number in range(WRITERS)))

    return await per_second(count, all_workers)


async def measure(folder: Path, span_count: int, rollout_count: int) -> dict[str, float]:
    """All figures, each on a store of its own."""
    spans = make_spans(span_count)
    figures: dict[str, float] = {}
    async with coterie.connect(folder / "one.db") as store:
        figures["spans_per_s_16_writers_1_a_call"] = await spans_one_by_one(store, spans)
    async with coterie.connect(folder / "many.db") as store:
        figures["spans_per_s_1_writer_100_a_call"] = await spans_in_batches(store, spans)
        figures["spans_per_s_read_10_a_call"] = await spans_read(store, span_count)
        figures["bytes_on_disk_per_span"] = round((await store.statistics())["bytes"] / span_count)
    async with coterie.connect(folder / "work.db") as store:
        figures["lease_finish_cycles_per_s_16_workers"] = await cycles(store, rollout_count)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the files lie while measuring; a temporary one by default")
    parser.add_argument("--spans", type=int, default=20_000)
    parser.add_argument("--rollouts", type=int, default=2_000)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = asyncio.run(measure(Path(folder), arguments.spans, arguments.rollouts))
    for name, figure in figures.items():
        print(f"{name:42s} {figure:>12,.1f}")
    if arguments.json:
        machine = {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "cpus": os.cpu_count(),
            "spans": arguments.spans,
            "rollouts": arguments.rollouts,
        }
        arguments.json.write_text(json.dumps({"figures": figures, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
