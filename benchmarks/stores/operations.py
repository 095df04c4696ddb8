"""What is measured of a store: taking spans, giving out work, answering questions, memory."""

from __future__ import annotations

import asyncio
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stores.workload import Workload, otlp_body

Attempt = tuple[str, str]
"""Ids of a rollout and of an attempt at it."""


class Backend(ABC):
    """A store that is measured. Spans are made from the mappings of the workload before the clock starts."""

    otlp: tuple[str, dict[str, str], str] | None = None
    """Where it takes OTLP, with which headers, and how its attributes begin."""
    process: int
    """The process that holds the store."""

    @abstractmethod
    async def open(self) -> None: ...
    @abstractmethod
    async def close(self) -> None: ...
    @abstractmethod
    def make_span(self, span: dict[str, Any]) -> Any: ...
    @abstractmethod
    async def start(self) -> Attempt: ...
    @abstractmethod
    async def enqueue(self, count: int) -> None: ...
    @abstractmethod
    async def lease(self) -> Attempt | None: ...
    @abstractmethod
    async def finish(self, attempt: Attempt) -> None: ...
    @abstractmethod
    async def add(self, spans: Sequence[Any]) -> None: ...
    @abstractmethod
    async def spans_of(self, attempt: Attempt, limit: int | None) -> int: ...
    @abstractmethod
    async def first_rollouts(self) -> int: ...

    async def start_many(self, count: int) -> list[Attempt]:
        """Rollouts that spans may be added to."""
        return [await self.start() for _ in range(count)]

    async def begin(self) -> Attempt:
        """Add a rollout and take it in one call."""
        return await self.start()

    async def finish_with(self, attempt: Attempt, spans: Sequence[Any]) -> bool:  # noqa: ARG002
        """End an attempt with its spans in one call; False for a store that has none."""
        return False


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    spans: int
    rollouts: int
    query_at: Sequence[int]
    queries: int
    long_rollout: int
    memory_spans: int
    spans_per_rollout: int = 10
    writers: int = 16


class Report(Protocol):
    def __call__(self, name: str, **figures: float) -> None: ...


async def ingest(store: Backend, sizes: Sizes, report: Report) -> None:
    """Spans a second: one by one, sixteen at once, in batches, over OTLP."""
    workload = Workload()
    count = sizes.spans

    async def fresh() -> list[dict[str, Any]]:
        attempts = [await store.start() for _ in range(count // sizes.spans_per_rollout)]
        return [
            workload.span(*attempts[n // sizes.spans_per_rollout], n % sizes.spans_per_rollout) for n in range(count)
        ]

    made = [store.make_span(span) for span in await fresh()]
    report("add_span serial", **figures(await timed(lambda n: store.add([made[n]]), count)))
    made = [store.make_span(span) for span in await fresh()]
    report(f"add_span {sizes.writers} concurrent", per_s=await at_once(made, lambda span: store.add([span]), sizes))
    for size in (10, 100):
        made = [store.make_span(span) for span in await fresh()]
        batches = [made[start : start + size] for start in range(0, count, size)]
        report(f"add_many {size}", **figures(await timed(lambda n: store.add(batches[n]), len(batches)), size))  # noqa: B023
    if store.otlp is None:
        return
    import aiohttp

    url, headers, prefix = store.otlp
    async with aiohttp.ClientSession(headers={"Content-Type": "application/x-protobuf", **headers}) as session:

        async def post(body: bytes) -> None:
            async with session.post(url, data=body) as response:
                assert response.status == 200, await response.text()
                await response.read()

        for size in (1, 10, 100):
            spans = await fresh()
            bodies = [otlp_body(spans[start : start + size], prefix) for start in range(0, count, size)]
            report(f"otlp {size}", **figures(await timed(lambda n: post(bodies[n]), len(bodies)), size))  # noqa: B023


async def lifecycle(store: Backend, sizes: Sizes, report: Report) -> None:
    """Rollouts a second: queued, leased, ended one by one and sixteen at once, and whole cycles with their spans."""
    count = sizes.rollouts
    taken: list[Attempt] = []

    async def lease(_: int) -> None:
        attempt = await store.lease()
        assert attempt is not None
        taken.append(attempt)

    report("enqueue serial", **figures(await timed(lambda _: store.enqueue(1), count)))
    report("lease serial", **figures(await timed(lease, count)))
    report("finish serial", **figures(await timed(lambda n: store.finish(taken[n]), count)))
    taken.clear()
    everyone = range(count)
    report("enqueue 16 concurrent", per_s=await at_once(everyone, lambda _: store.enqueue(1), sizes))
    report("lease 16 concurrent", per_s=await at_once(everyone, lease, sizes))
    report("finish 16 concurrent", per_s=await at_once(list(taken), store.finish, sizes))
    report("enqueue_many 100", **figures(await timed(lambda _: store.enqueue(100), max(1, count // 100)), 100))
    while await store.lease():
        pass
    cycles = max(50, count // 10)
    workload = Workload(seed=1, distinct=1000)
    numbers = range(sizes.spans_per_rollout)

    def spans_of(attempt: Attempt) -> list[Any]:
        return [store.make_span(workload.span(*attempt, number)) for number in numbers]

    async def cycle(_: int) -> None:
        await store.enqueue(1)
        attempt = await store.lease()
        assert attempt is not None
        for span in spans_of(attempt):
            await store.add([span])
        await store.finish(attempt)

    async def short_cycle(_: int) -> None:
        await store.enqueue(1)
        attempt = await store.lease()
        assert attempt is not None
        await store.finish_with(attempt, spans_of(attempt))

    async def shortest_cycle(_: int) -> None:
        attempt = await store.begin()
        await store.finish_with(attempt, spans_of(attempt))

    report(f"full cycle, {len(numbers)} x add_span", **figures(await timed(cycle, cycles)))
    report(f"full cycle, {len(numbers)} x add_span, 16 concurrent", per_s=await at_once(range(cycles), cycle, sizes))
    if await store.finish_with(await store.start(), []):
        report(f"full cycle, finish(spans of {len(numbers)})", **figures(await timed(short_cycle, cycles)))
        report(f"full cycle, begin, finish(spans of {len(numbers)})", **figures(await timed(shortest_cycle, cycles)))


async def query(store: Backend, sizes: Sizes, report: Report) -> None:
    """How long answers take, in stores of growing size, and of one long rollout."""
    workload = Workload(seed=2, distinct=1000)
    attempts: list[Attempt] = []
    for total in sizes.query_at:
        start = time.perf_counter()
        missing = total // sizes.spans_per_rollout - len(attempts)
        attempts.extend(await fill(store, workload, missing, sizes.spans_per_rollout))
        loaded = missing * sizes.spans_per_rollout / (time.perf_counter() - start)
        at = f"{total // 1000}k"
        report(f"load to {at}", per_s=round(loaded, 1))
        await timed(lambda n: store.spans_of(attempts[n * 11 % len(attempts)], None), 20)
        latencies = await timed(lambda n: store.spans_of(attempts[n * 7919 % len(attempts)], None), sizes.queries)
        report(f"spans of a rollout @{at}", **figures(latencies))
        report(f"20 rollouts @{at}", **figures(await timed(lambda _: store.first_rollouts(), sizes.queries // 4)))
    attempt = (await fill(store, workload, 1, sizes.long_rollout))[0]
    assert await store.spans_of(attempt, None) == sizes.long_rollout
    report("long rollout, all", **figures(await timed(lambda _: store.spans_of(attempt, None), 7)))
    report("long rollout, 20", **figures(await timed(lambda _: store.spans_of(attempt, 20), 50)))


async def memory(store: Backend, sizes: Sizes, report: Report) -> None:
    """Resident bytes a stored span, and how many of them the last half of the spans added."""
    import psutil

    process = psutil.Process(store.process)
    workload = Workload(seed=3, distinct=1000)
    rollouts = sizes.memory_spans // sizes.spans_per_rollout

    def resident() -> int:
        gc.collect()
        return int(process.memory_info().rss)

    async def fill_half() -> None:
        # A little at a time, so that the ids held here do not count.
        for _ in range(rollouts // 2 // 50):
            await fill(store, workload, 50, sizes.spans_per_rollout)

    await fill(store, workload, 50, sizes.spans_per_rollout)
    empty = resident()
    await fill_half()
    half = resident()
    await fill_half()
    full = resident()
    report(
        f"resident bytes a span, {sizes.memory_spans:,} spans",
        bytes_per_span=round((full - empty) / sizes.memory_spans, 1),
        last_half=round((full - half) / (sizes.memory_spans / 2), 1),
        megabytes=round((full - empty) / 1e6, 1),
    )


SUITES: dict[str, Callable[[Backend, Sizes, Report], Awaitable[None]]] = {
    "ingest": ingest,
    "lifecycle": lifecycle,
    "query": query,
    "memory": memory,
}


async def fill(store: Backend, workload: Workload, rollouts: int, spans: int) -> list[Attempt]:
    """Add so many rollouts of so many spans as quickly as the store takes them."""
    attempts = await store.start_many(rollouts)
    waiting: list[Any] = []
    for number, attempt in enumerate(attempts):
        for position in range(spans):
            waiting.append(store.make_span(workload.span(*attempt, position)))
            if len(waiting) == 500 or (number == rollouts - 1 and position == spans - 1):
                await store.add(waiting)
                waiting = []
    return attempts


async def timed(work: Callable[[int], Awaitable[Any]], count: int) -> list[float]:
    """The seconds of each of ``count`` calls, one after another."""
    latencies = []
    for number in range(count):
        start = time.perf_counter()
        await work(number)
        latencies.append(time.perf_counter() - start)
    return latencies


async def at_once(items: Sequence[Any], work: Callable[[Any], Awaitable[Any]], sizes: Sizes) -> float:
    """Items a second with several callers."""
    left = iter(items)

    async def caller() -> None:
        for item in left:
            await work(item)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(sizes.writers)))
    return round(len(items) / (time.perf_counter() - start), 1)


def figures(latencies: Sequence[float], items: int = 1) -> dict[str, float]:
    """Items a second, and how long a call took, in milliseconds."""
    in_order = sorted(latencies)
    return {
        "per_s": round(len(in_order) * items / sum(in_order), 1),
        "p50_ms": round(in_order[len(in_order) // 2] * 1e3, 3),
        "p99_ms": round(in_order[min(len(in_order) - 1, int(len(in_order) * 0.99))] * 1e3, 3),
        "max_ms": round(in_order[-1] * 1e3, 2),
    }
