"""What waits between an attempt and its store: bounded in memory, in order, never lost."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coterie
from coterie.conventions import INVOKE_WORKFLOW, OPERATION
from coterie.runner import Runner
from coterie.runner.sink import PORTION_ITEMS, Backlog
from coterie.scope import AttemptScope, current_scope
from coterie.store.base import Store
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import AttemptState, Mode, Reward, Rollout, RolloutState, Span, Task


def span(number: int, text: str = "") -> Span:
    return Span(f"{1:032x}", f"{number:016x}", str(number), 1, 2, attributes={"text": text})


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the runner announces by no event."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.002)


def span_of(scope: AttemptScope, name: str, number: int, attributes: dict[str, Any]) -> Span:
    ids = {"rollout_id": scope.rollout_id, "attempt_id": scope.attempt_id}
    return Span(f"{7:032x}", f"{number + 1:016x}", name, 1, 2, **ids, attributes=attributes)


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 60)),
        st.tuples(st.just("reward"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["take", "written", "spill"]), st.just(0)),
    ),
    max_size=60,
)


@given(Steps, st.integers(1, 40_000))
def test_what_goes_in_comes_out_once_and_in_order(steps: list[tuple[str, int]], memory_bytes: int) -> None:
    async def played() -> None:
        backlog = Backlog(memory_bytes=memory_bytes)
        sink = backlog.open()
        put: list[str] = []
        got: list[str] = []
        portion = None
        for step, count in steps:
            if step in ("add", "reward"):
                for _ in range(count):
                    put.append(str(len(put)))
                    if step == "add":
                        sink.add_span(span(len(put) - 1, "x" * 100))
                    else:
                        sink.add_reward(Reward("ro", "at", 1.0, id=put[-1]))
                    assert sink.in_memory <= memory_bytes
            elif step == "take":
                again = sink.take()
                assert portion is None or not portion.items or again.items == portion.items
                portion = again
            elif step == "spill":
                backlog.spilled += sink.spill()
            elif portion is not None:
                got += [item.name if isinstance(item, Span) else item.id for item in portion.items]
                portion.written()
                portion.written()
                portion = None
            assert sink.count == len(put) - len(got)
            assert backlog.behind == sink.on_disk
        while (portion := sink.take()).items:
            got += [item.name if isinstance(item, Span) else item.id for item in portion.items]
            portion.written()
        assert got == put
        assert (sink.count, sink.on_disk, sink.in_memory) == (0, False, 0)
        backlog.close(sink)

    asyncio.run(played())


async def test_the_largest_goes_to_disk_first() -> None:
    backlog = Backlog(memory_bytes=100_000)
    large, small = backlog.open(), backlog.open()
    for number in range(50):
        small.add_span(span(number))
        large.add_span(span(number, "x" * 10_000))
    assert large.on_disk
    assert not small.on_disk
    assert backlog.waiting == 100
    assert large.in_memory + small.in_memory <= 100_000


async def test_threads_lose_nothing() -> None:
    backlog = Backlog(memory_bytes=200_000)
    sink = backlog.open()

    def write(thread: int) -> None:
        for number in range(2000):
            sink.add_span(span(thread * 10_000 + number, "y" * 50))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    # A reader that keeps pace with the threads would leave nothing to spill.
    await until(lambda: backlog.spilled)
    got: Counter[str] = Counter()
    while any(thread.is_alive() for thread in threads) or sink.count:
        portion = sink.take()
        assert len(portion.items) <= PORTION_ITEMS
        got.update(one.span_id for one in portion.spans)
        portion.written()
        await asyncio.sleep(0)
    assert len(got) == 8000
    assert set(got.values()) == {1}
    assert backlog.spilled


async def test_a_disk_that_takes_nothing_is_told_and_loses_nothing(monkeypatch, caplog) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/no such folder")
    backlog = Backlog(memory_bytes=20_000)
    sink = backlog.open()
    for number in range(100):
        sink.add_span(span(number, "x" * 1000))
    assert sink.count == 100
    assert "could not be put on disk: FileNotFoundError" in caplog.text
    assert len(caplog.records) < 10
    assert [one.name for one in sink.take().spans] == [str(number) for number in range(100)]


async def test_an_attempt_that_writes_faster_than_the_store_loses_nothing(tmp_path: Path) -> None:
    """Spans of 10 MB through 1 MB of memory, while another process holds the store's file."""
    file = tmp_path / "store.db"

    async def team(task):
        scope = current_scope()
        assert scope is not None
        for number in range(1000):
            scope.sink.add_span(span_of(scope, "busy", number, {"text": "z" * 10_000}))
            if number % 100 == 0:
                await asyncio.sleep(0)
        return 1.0

    async with await SqliteStore.open(file, lock_timeout_seconds=0.1) as store:
        await store.add_tasks([Task("t1", None)])
        rollout = Rollout("t1", mode=Mode.VAL)
        other = sqlite3.connect(file, isolation_level=None)
        async with Runner(store, coterie.rollout(team), memory_bytes=2**20) as runner:
            await store.enqueue([rollout])
            await until(lambda: runner.running)
            other.execute("BEGIN IMMEDIATE")
            await until(lambda: runner.waiting >= 1000)
            await asyncio.sleep(0.3)
            other.execute("COMMIT")
            (ended,) = await store.wait([rollout.id], timeout_seconds=30)
            await runner.drain()
            assert runner.statistics.spilled > 500
            assert runner.waiting == 0
        other.close()
        assert ended.state is RolloutState.SUCCEEDED
        (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
        spans = (await store.get_spans([attempt.id]))[attempt.id]
    assert len({one.span_id for one in spans if one.name == "busy"}) == 1000
    assert [one.name for one in spans if one.attributes.get(OPERATION) == INVOKE_WORKFLOW] == ["team"]


async def test_only_what_the_store_refuses_is_lost_and_the_attempt_says_so(store: Store) -> None:
    async def team(task):
        scope = current_scope()
        assert scope is not None
        for number, value in enumerate(["good", {1, 2}, "good too"]):
            scope.sink.add_span(span_of(scope, "mine", number, {"value": value}))
        return 1.0

    async with Runner(store, coterie.rollout(team)) as runner:
        rollout = Rollout("t1", mode=Mode.VAL)
        await store.enqueue([rollout])
        await store.wait([rollout.id], timeout_seconds=30)
        await runner.drain()
        assert runner.statistics.refused == 1
    (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
    assert attempt.state is AttemptState.FAILED
    assert "1 of its spans and rewards could not be stored" in str(attempt.error)
    assert "attributes cannot be stored as JSON" in str(attempt.error)
    spans = (await store.get_spans([attempt.id]))[attempt.id]
    assert sorted(one.attributes["value"] for one in spans if one.name == "mine") == ["good", "good too"]


@pytest.mark.parametrize("written", [True, False])
async def test_a_portion_taken_before_a_spill_is_not_confused_with_what_follows(written: bool) -> None:
    backlog = Backlog()
    sink = backlog.open()
    sink.add_span(span(1))
    portion = sink.take()
    sink.add_span(span(2))
    sink.spill()
    sink.add_span(span(3))
    if written:
        portion.written()
    names = []
    while (portion := sink.take()).items:
        names += [one.name for one in portion.spans]
        portion.written()
    assert names == (["2", "3"] if written else ["1", "2", "3"])
