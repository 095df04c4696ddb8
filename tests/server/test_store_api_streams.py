"""Long listings and waiting over HTTP: whole listings as lines in constant memory, ends as events, pages by cursor."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from server_parts import ServerProcess

import coterie
from coterie.store.base import Store
from coterie.store.http import HttpStore
from coterie.vocabulary import AttemptState, Rollout, RolloutState, Span, Task, new_id

LINES = {"accept": "application/x-ndjson"}


@pytest.fixture
async def store(server: ServerProcess) -> AsyncIterator[Store]:
    async with coterie.connect(server.address, token=server.admin) as store:
        await store.add_tasks([Task("t", 1)])
        yield store


def spans(rollout_id: str, count: int, size: int) -> list[Span]:
    trace = new_id("")[1:].ljust(32, "0")
    return [
        Span(trace, f"{number:016x}", "chat", number, number, rollout_id=rollout_id, attributes={"text": "x" * size})
        for number in range(count)
    ]


async def test_a_whole_listing_comes_as_lines_in_order(server: ServerProcess, store: Store) -> None:
    await store.add_spans(kept := spans(rollout_id := new_id("ro"), 450, 10))
    with server.client() as client:
        answer = client.get("/v1/spans", params={"rollout_id": rollout_id}, headers=LINES)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        page = client.get("/v1/spans", params={"rollout_id": rollout_id, "limit": 400}).json()
        rest = client.get("/v1/spans", params={"rollout_id": rollout_id, "after": page["cursor"]}, headers=LINES)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [line["span_id"] for line in lines] == [span.span_id for span in kept]
    assert lines[:400] == page["items"]
    assert [json.loads(line) for line in rest.text.splitlines()] == lines[400:]
    assert lines[0]["attributes"] == {"text": "x" * 10}


async def test_a_long_listing_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        process = psutil.Process(server.process.pid)
        async with coterie.connect(server.address, token=server.admin) as store:
            rollout_id = new_id("ro")
            for _ in range(6):  # 48 MB
                await store.add_spans(spans(rollout_id, 400, 20_000))
        sizes: list[int] = []
        received = 0
        with (
            server.client() as client,
            client.stream("GET", "/v1/spans", params={"rollout_id": rollout_id}, headers=LINES) as answer,
        ):
            for chunk in answer.iter_bytes(1 << 20):
                received += len(chunk)
                sizes.append(process.memory_info().rss)
                if received < 20_000_000:
                    time.sleep(0.02)  # noqa: ASYNC251 - A slow reader: what it has not read yet must not pile up either.
        assert received > 47_000_000
        early = max(sizes[: len(sizes) // 4])
        assert max(sizes) - early < 15_000_000, (early, max(sizes))


async def test_ends_are_told_as_they_come(server: ServerProcess, store: Store) -> None:
    run_id = new_id("run")
    rollouts = [Rollout("t", run_id=run_id) for _ in range(3)]
    await store.enqueue(rollouts)
    leases = {lease.rollout.id: lease for lease in await store.lease("w", limit=3, run_id=run_id)}
    await store.finish(leases[rollouts[2].id].attempt.id, AttemptState.SUCCEEDED)
    events: list[tuple[str, str | None]] = []
    async with (
        httpx.AsyncClient(base_url=server.address, trust_env=False, timeout=30) as client,
        client.stream(
            "GET",
            "/v1/rollouts/ended",
            params={"run_id": run_id},
            headers={"authorization": f"Bearer {server.admin}"},
        ) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                events.append((name, data.get("id")))
                if len(events) == 1:
                    await store.finish(leases[rollouts[0].id].attempt.id, AttemptState.SUCCEEDED)
                elif len(events) == 2:
                    await store.cancel([rollouts[1].id])
    assert events == [("ended", rollouts[2].id), ("ended", rollouts[0].id), ("ended", rollouts[1].id), ("done", None)]


async def test_a_page_is_no_larger_than_asked_and_a_client_gets_as_much_as_it_asks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add_spans(spans(rollout_id := new_id("ro"), 25, 1))
    monkeypatch.setattr("coterie.store.wire.LARGEST_PAGE", 10)
    page = await store.list_spans(rollout_id=rollout_id, limit=24)
    assert (len(page.items), page.cursor is None) == (24, False)
    rest = await store.list_spans(rollout_id=rollout_id, after=page.cursor, limit=24)
    assert (len(rest.items), rest.cursor) == (1, None)


async def test_a_long_wait_is_several_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.store.wire.LONGEST_POLL_SECONDS", 0.2)
    run_id = new_id("run")
    began = time.monotonic()
    assert list(await store.lease("w", wait_seconds=0.7, run_id=run_id)) == []
    assert 0.6 < time.monotonic() - began < 5
    waiting = asyncio.create_task(store.lease("w", wait_seconds=20, run_id=run_id))
    await asyncio.sleep(0.5)
    rollout = Rollout("t", run_id=run_id)
    await store.enqueue([rollout])
    async with asyncio.timeout(10):
        (lease,) = await waiting
    ending = asyncio.create_task(store.wait([rollout.id]))
    await asyncio.sleep(0.5)
    await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)
    async with asyncio.timeout(10):
        (ended,) = await ending
    assert ended.state is RolloutState.SUCCEEDED


async def test_work_begins_soon_after_it_is_queued(server: ServerProcess, store: Store) -> None:
    seconds: list[float] = []
    async with coterie.connect(server.address, token=server.admin) as worker:
        assert isinstance(worker, HttpStore)
        for _ in range(5):
            run_id = new_id("run")
            waiting = asyncio.create_task(worker.lease("w", wait_seconds=20, run_id=run_id))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await store.enqueue([Rollout("t", run_id=run_id)])
            assert len(await waiting) == 1
            seconds.append(time.monotonic() - began)
    # A busy machine needs longer; one that polled would need much longer.
    assert min(seconds) < 0.2, seconds
