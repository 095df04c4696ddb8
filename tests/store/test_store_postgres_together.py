"""Several servers on one PostgreSQL database: nothing is taken twice, missed, or told late."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from postgres_server import DATABASES, PostgresServer, shared_server, skip_without_postgresql

from coterie.errors import LeaseLostError
from coterie.store.base import Store
from coterie.store.filters import SpanFilter
from coterie.vocabulary import AttemptState, Lease, Rollout, RolloutState, Span, Task

pytestmark = pytest.mark.postgres

SECONDS_FOR_A_CHILD = 60


@pytest.fixture
def url() -> Iterator[str]:
    """The address of an empty database."""
    skip_without_postgresql()
    name = DATABASES.take()
    yield shared_server().url(name)
    DATABASES.give_back(name)


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one database, as two servers have them."""
    from coterie.store.postgres import PostgresStore

    one, other = await PostgresStore.open(url), await PostgresStore.open(url)
    yield one, other
    await one.close()
    await other.close()


def span(number: int, trace: int = 1) -> Span:
    return Span(f"{trace:032x}", f"{number:016x}", "chat", number, number + 1)


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def raw_insert(number: int) -> str:
    return (
        "INSERT INTO spans (trace_id, span_id, name, start_ns, end_ns, status, status_message, attributes, events) "
        f"VALUES ('late', '{number}', 'chat', 1, 2, 'unset', '', '{{}}', '[]')"
    )


async def test_a_cursor_does_not_pass_what_is_about_to_appear(url: str, two: tuple[Store, Store]) -> None:
    """A row with a smaller number that is committed later: without care the cursor would be past it by then."""
    from coterie.store import arrival
    from coterie.store.postgres import PostgresStore
    from coterie.store.tables import SPANS

    store = two[0]
    assert isinstance(store, PostgresStore)
    await store.add_spans([span(1), span(2)])
    slow = store._engine.connect()
    arrival.announce(slow, SPANS)
    slow.exec_driver_sql(raw_insert(1))
    await store.add_spans([span(3), span(4), span(5)])
    # What is acknowledged can be read at once, if it fits on the page.
    assert [entry.span_id for entry in (await store.list_spans()).items] == [f"{n:016x}" for n in range(1, 6)]
    page = await store.list_spans(limit=3)
    assert [entry.span_id for entry in page.items] == [f"{n:016x}" for n in (1, 2)]
    assert page.cursor is not None
    assert await store.search_spans(SpanFilter(name="chat"), limit=3) == page
    # The next page has to wait for the slow transaction.
    waiting = asyncio.create_task(store.list_spans(after=page.cursor, limit=2))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    slow.commit()
    slow.close()
    rest = await asyncio.wait_for(waiting, 10)
    assert [entry.span_id for entry in rest.items] == ["1", f"{3:016x}"]
    found = await store.search_spans(SpanFilter(name="chat"), limit=3)
    assert [entry.span_id for entry in found.items] == [f"{1:016x}", f"{2:016x}", "1"]


async def test_listings_miss_nothing_while_many_write(two: tuple[Store, Store]) -> None:
    writers, each = 6, 60
    ended = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(each):
            await two[writer % 2].add_spans([span(number, writer), span(number + 1000, writer)])

    async def follow(store: Store) -> list[Span]:
        """Reads small pages and goes on from the last cursor whenever the end was reached."""
        seen: list[Span] = []
        cursor: str | None = None
        while True:
            last_round = ended.is_set()
            while True:
                page = await store.list_spans(after=cursor, limit=7)
                if page.cursor is None:
                    break
                seen += page.items
                cursor = page.cursor
            if last_round:
                return seen + list(page.items)
            await asyncio.sleep(0.001)

    following = [asyncio.create_task(follow(store)) for store in two]
    await asyncio.gather(*(write(writer) for writer in range(writers)))
    ended.set()
    for seen in await asyncio.gather(*following):
        counted = Counter((entry.trace_id, entry.span_id) for entry in seen)
        assert len(counted) == writers * each * 2
        assert set(counted.values()) == {1}


async def test_two_servers_wake_each_other_at_once(two: tuple[Store, Store]) -> None:
    one, other = two
    await one.add_tasks([Task("t", 1)])
    delays = []
    for _ in range(5):
        leasing = asyncio.create_task(other.lease("w", wait_seconds=20))
        await asyncio.sleep(0.2)
        rollout = Rollout("t")
        await one.enqueue([rollout])
        queued_at = time.monotonic()
        (lease,) = await asyncio.wait_for(leasing, 10)
        delays.append(time.monotonic() - queued_at)
        ending = asyncio.create_task(one.wait([rollout.id], timeout_seconds=20))
        await asyncio.sleep(0.05)
        await other.finish(lease.attempt.id, AttemptState.SUCCEEDED)
        ended_at = time.monotonic()
        await asyncio.wait_for(ending, 10)
        delays.append(time.monotonic() - ended_at)
    # Not all of them: the machine may have other things to do.
    assert sorted(delays)[len(delays) // 3] < 0.05


async def test_more_ends_than_fit_into_a_notification_wake_too(two: tuple[Store, Store]) -> None:
    one, other = two
    await one.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t") for _ in range(600)]
    await one.enqueue(rollouts)
    waiting = asyncio.create_task(other.wait([rollout.id for rollout in rollouts], timeout_seconds=30))
    await asyncio.sleep(0.3)
    await one.cancel([rollout.id for rollout in rollouts])
    ended = await asyncio.wait_for(waiting, 10)
    assert {rollout.state for rollout in ended} == {RolloutState.CANCELLED}


LEASE_ALL = """
import asyncio, sys
import coterie
from coterie.vocabulary import AttemptState

async def work(store, name):
    while leases := await store.lease(name, limit=3, wait_seconds=2):
        for lease in leases:
            print(lease.rollout.id, flush=True)
            await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)

async def main(url, name):
    async with coterie.connect(url) as store:
        await asyncio.gather(*(work(store, f"{name}-{number}") for number in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_several_processes_share_the_work(url: str, two: tuple[Store, Store]) -> None:
    children = [child(LEASE_ALL, url, f"p{number}") for number in range(3)]
    store = two[0]
    await store.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t") for _ in range(200)]
    for start in range(0, len(rollouts), 10):
        await store.enqueue(rollouts[start : start + 10])
    ended = await store.wait([rollout.id for rollout in rollouts], timeout_seconds=SECONDS_FOR_A_CHILD)
    printed = [(await asyncio.to_thread(process.communicate, timeout=SECONDS_FOR_A_CHILD))[0] for process in children]
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    assert [process.returncode for process in children] == [0, 0, 0]
    taken = [line for text in printed for line in text.split()]
    assert sorted(taken) == sorted(rollout.id for rollout in rollouts)
    attempts = await store.get_attempts([rollout.id for rollout in rollouts])
    assert {len(tried) for tried in attempts.values()} == {1}


async def test_whatever_happens_at_once_a_rollout_has_one_fate(url: str, two: tuple[Store, Store]) -> None:
    """Workers, an impatient user and a slow clock on two servers; in the end the books must balance."""
    chance = random.Random(7)
    store = two[0]
    await store.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t", max_attempts=3) for _ in range(40)]
    ids = [rollout.id for rollout in rollouts]
    await store.enqueue(rollouts)
    stop_at = time.monotonic() + 4
    held: Counter[str] = Counter()
    told_ended: list[tuple[str, AttemptState]] = []

    async def work(store: Store, worker: str) -> None:
        while time.monotonic() < stop_at:
            leases = await store.lease(worker, limit=chance.randint(1, 4), lease_seconds=0.3, wait_seconds=0.1)
            for lease in leases:
                held[lease.rollout.id] += 1
            await asyncio.gather(*(end(store, lease) for lease in leases))

    async def end(store: Store, lease: Lease) -> None:
        await asyncio.sleep(chance.choice([0, 0, 0.01, 0.4]))
        await store.heartbeat([lease.attempt.id], lease_seconds=0.3)
        state = chance.choice(
            [AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.FAILED, AttemptState.CANCELLED]
        )
        ends = [store.finish(lease.attempt.id, state, spans=[span(len(told_ended), 2)]) for store in two]
        # Told to both servers at the same time, as after a lost answer: one end.
        outcomes = await asyncio.gather(*ends[: chance.randint(1, 2)], return_exceptions=True)
        for coroutine in ends[len(outcomes) :]:
            coroutine.close()
        for outcome in outcomes:
            assert isinstance(outcome, (Rollout, LeaseLostError)), outcome
            if isinstance(outcome, Rollout):
                told_ended.append((lease.attempt.id, state))

    async def meddle(store: Store) -> None:
        while time.monotonic() < stop_at:
            some = chance.sample(ids, 6)
            meddling = store.cancel(some) if chance.random() < 0.4 else store.requeue(some)
            (outcome,) = await asyncio.gather(meddling, return_exceptions=True)
            assert outcome is None or "succeeded already" in str(outcome)
            await asyncio.sleep(0.02)

    await asyncio.gather(
        *(work(two[number % 2], f"w{number}") for number in range(6)), *(meddle(store) for store in two)
    )
    for _ in range(20):
        await store.lease("late", run_id="none")
        attempts = await store.get_attempts(ids)
        if not any(attempt.state is AttemptState.RUNNING for tried in attempts.values() for attempt in tried):
            break
        await asyncio.sleep(0.1)
    attempts = await store.get_attempts(ids)
    kept = {rollout.id: rollout for rollout in await store.get_rollouts(ids)}
    state_of = {attempt.id: attempt.state for tried in attempts.values() for attempt in tried}
    for attempt_id, state in told_ended:
        assert state_of[attempt_id] is state
    for id_, tried in attempts.items():
        assert len(tried) == held[id_]
        assert [attempt.number for attempt in tried] == list(range(1, len(tried) + 1))
        succeeded = sum(attempt.state is AttemptState.SUCCEEDED for attempt in tried)
        assert succeeded == (1 if kept[id_].state is RolloutState.SUCCEEDED else 0)
        assert (kept[id_].finished_ns is not None) == kept[id_].state.terminal
    assert any(len(tried) > 2 for tried in attempts.values())
    name = url.partition("@/")[2].partition("?")[0]
    assert shared_server().run(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'") == [(0,)]


async def test_leases_of_one_request_are_given_once(two: tuple[Store, Store]) -> None:
    one, other = two
    await one.add_tasks([Task("t", 1)])
    await one.enqueue([Rollout("t") for _ in range(20)])
    for round_ in range(5):
        answers = await asyncio.gather(
            *(store.lease("w", limit=2, request_id=f"r{round_}") for store in (one, other, one, other))
        )
        assert len({tuple(lease.attempt.id for lease in leases) for leases in answers}) == 1
        assert len({tuple(lease.rollout.id for lease in leases) for leases in answers}) == 1


async def test_versions_that_two_servers_publish_follow_each_other(two: tuple[Store, Store]) -> None:
    from coterie.vocabulary import Resource, ResourceKind

    published = await asyncio.gather(
        *(store.publish(Resource("p", ResourceKind.MEMORY, {"n": n})) for n in range(20) for store in two)
    )
    assert sorted(resource.version for resource in published) == list(range(1, 41))


WRITE_FOREVER = """
import asyncio, os, sys
import coterie
from coterie.errors import StoreUnavailableError
from coterie.vocabulary import Rollout, Span, Task

async def write(store, writer):
    for number in range(1_000_000):
        span = Span(f"{writer:032x}", f"{number:016x}", "chat", 1, 2, attributes={"text": "x" * 500})
        rollout = Rollout("t")
        while True:
            try:
                await store.add_spans([span])
                os.write(1, f"s {writer} {number}\\n".encode())
                await store.enqueue([rollout])
                os.write(1, f"r {rollout.id} -\\n".encode())
                break
            except StoreUnavailableError as error:
                os.write(1, f"e {str(error)!r} -\\n".encode())
                await asyncio.sleep(0.1)

async def main(url):
    async with coterie.connect(url) as store:
        await store.add_tasks([Task("t", 1)])
        await asyncio.gather(*(write(store, writer) for writer in range(8)))

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may kill; it waits for the disk as servers do."""
    server = PostgresServer(durable=True)
    yield server
    server.remove()


async def test_a_killed_server_loses_nothing_that_was_acknowledged(own_server: PostgresServer) -> None:
    from coterie.store.postgres import PostgresStore

    own_server.run("CREATE DATABASE killed")
    url = own_server.url("killed")
    waiter = await PostgresStore.open(url)
    await waiter.add_tasks([Task("t", 1)])
    waiting = asyncio.create_task(waiter.lease("patient", run_id="later", wait_seconds=60))
    await asyncio.sleep(0.3)
    process = child(WRITE_FOREVER, url)
    assert process.stdout is not None
    lines: list[str] = []

    async def read(count: int) -> None:
        assert process.stdout is not None
        enough_at, deadline = len(lines) + count, time.monotonic() + SECONDS_FOR_A_CHILD
        while len(lines) < enough_at and time.monotonic() < deadline:
            lines.append(await asyncio.to_thread(process.stdout.readline))

    try:
        await read(300)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        await read(300)
    finally:
        process.kill()
    lines += (await asyncio.to_thread(process.stdout.read)).splitlines()
    process.wait(SECONDS_FOR_A_CHILD)
    acknowledged = [line.split(" ", 2) for line in lines if line.strip()]
    assert sum(entry[0] == "s" for entry in acknowledged) > 200
    await waiter.get_rollouts([entry[1] for entry in acknowledged if entry[0] == "r"])
    for writer in range(8):
        page = await waiter.list_spans(trace_id=f"{writer:032x}", limit=10**6)
        kept = {int(entry.span_id, 16) for entry in page.items}
        assert {int(entry[2]) for entry in acknowledged if entry[:2] == ["s", str(writer)]} <= kept
    # Who waited all the time hears again.
    await waiter.enqueue([Rollout("t", run_id="later")])
    assert len(await asyncio.wait_for(waiting, 20)) == 1
    await waiter.close()
