"""Many at once: writers, threads, event loops, processes, and a process that is killed while it writes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from stores_under_test import OpenStore

import coterie
from coterie.errors import StoreError
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Resource, ResourceKind, Rollout, RolloutState, Span, Task

SECONDS_FOR_A_CHILD = 60


def span(writer: int, number: int) -> Span:
    return Span(f"{writer:032x}", f"{number:016x}", "chat", number, number + 1, attempt_id=f"at-{writer}")


async def test_sixteen_writers_lose_and_double_nothing(store: Store) -> None:
    async def write(writer: int) -> None:
        for number in range(25):
            await store.add_spans([span(writer, number)])
            if number % 5 == 0:
                await store.add_spans([span(writer, number)])

    await asyncio.gather(*(write(writer) for writer in range(16)))
    kept = await store.get_spans([f"at-{writer}" for writer in range(16)])
    assert kept == {f"at-{writer}": tuple(span(writer, number) for number in range(25)) for writer in range(16)}


async def test_what_is_acknowledged_can_be_read_at_once(store: Store) -> None:
    async def write_and_read(writer: int) -> None:
        for number in range(10):
            await store.add_spans([span(writer, number)])
            assert len((await store.get_spans([f"at-{writer}"]))[f"at-{writer}"]) == number + 1

    await asyncio.gather(*(write_and_read(writer) for writer in range(8)))


async def test_event_loops_in_several_threads_share_a_store(store: Store) -> None:
    await store.add_tasks([Task("t", 1)])
    rollouts = [Rollout("t") for _ in range(40)]
    taken: list[str] = []

    async def work(worker: str) -> None:
        while leases := await store.lease(worker, wait_seconds=1):
            for lease in leases:
                taken.append(lease.rollout.id)
                await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)

    threads = [threading.Thread(target=lambda name=f"w{n}": asyncio.run(work(name))) for n in range(4)]
    for thread in threads:
        thread.start()
    await store.enqueue(rollouts)
    ended = await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    assert sorted(taken) == sorted(rollout.id for rollout in rollouts)


async def test_a_file_opened_twice_is_one_store(open_store: OpenStore) -> None:
    one, other = await open_store("same"), await open_store("same")
    await one.add_tasks([Task("t", 1)])
    waiting = asyncio.create_task(other.lease("w", wait_seconds=20))
    await asyncio.sleep(0.2)
    rollout = Rollout("t")
    await one.enqueue([rollout])
    async with asyncio.timeout(10):
        (lease,) = await waiting
    ending = asyncio.create_task(one.wait([rollout.id], timeout_seconds=20))
    await asyncio.sleep(0.2)
    await other.finish(lease.attempt.id, AttemptState.SUCCEEDED)
    async with asyncio.timeout(10):
        ended = await ending
    assert [rollout.state for rollout in ended] == [RolloutState.SUCCEEDED]
    versions = await asyncio.gather(
        *(store.publish(Resource("p", ResourceKind.MEMORY, {})) for store in (one, other) * 10)
    )
    assert sorted(resource.version for resource in versions) == list(range(1, 21))


LEASE_ALL = """
import asyncio, sys
import coterie
from coterie.vocabulary import AttemptState

async def work(store, name):
    while leases := await store.lease(name, limit=3, wait_seconds=3):
        for lease in leases:
            print(lease.rollout.id, flush=True)
            await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)

async def main(path, name):
    async with coterie.connect(path) as store:
        await asyncio.gather(*(work(store, f"{name}-{number}") for number in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


async def test_several_processes_share_the_work(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    # All at once on a file that does not exist yet: one of them makes the tables.
    children = [child(LEASE_ALL, str(path), f"p{number}") for number in range(3)]
    async with coterie.connect(path) as store:
        await store.add_tasks([Task("t", 1)])
        rollouts = [Rollout("t") for _ in range(120)]
        for start in range(0, 120, 10):
            await store.enqueue(rollouts[start : start + 10])
        ended = await store.wait([rollout.id for rollout in rollouts], timeout_seconds=SECONDS_FOR_A_CHILD)
        assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
        printed = [
            (await asyncio.to_thread(process.communicate, timeout=SECONDS_FOR_A_CHILD))[0] for process in children
        ]
        assert [process.returncode for process in children] == [0, 0, 0]
        taken = [line for text in printed for line in text.split()]
        assert sorted(taken) == sorted(rollout.id for rollout in rollouts)
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
        assert {len(tried) for tried in attempts.values()} == {1}


WRITE_FOREVER = """
import asyncio, os, sys
import coterie
from coterie.vocabulary import Rollout, Span, Task

async def write(store, writer):
    for number in range(1_000_000):
        await store.add_spans([Span(f"{writer:032x}", f"{number:016x}", "chat", 1, 2, attributes={"text": "x" * 500})])
        os.write(1, f"s {writer} {number}\\n".encode())
        rollout = Rollout("t")
        await store.enqueue([rollout])
        os.write(1, f"r {rollout.id} -\\n".encode())

async def main(path):
    async with coterie.connect(path) as store:
        await store.add_tasks([Task("t", 1)])
        await asyncio.gather(*(write(store, writer) for writer in range(8)))

asyncio.run(main(sys.argv[1]))
"""


async def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    process = child(WRITE_FOREVER, str(path))
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + SECONDS_FOR_A_CHILD
    while len(lines) < 300 and time.monotonic() < deadline:
        lines.append(await asyncio.to_thread(process.stdout.readline))
    process.send_signal(signal.SIGKILL)
    lines += (await asyncio.to_thread(process.stdout.read)).splitlines()
    process.wait(SECONDS_FOR_A_CHILD)
    acknowledged = [line.split() for line in lines if line.strip()]
    assert len(acknowledged) >= 300
    async with coterie.connect(path) as store:
        await store.get_rollouts([entry[1] for entry in acknowledged if entry[0] == "r"])
        for writer in range(8):
            kept = {
                int(span.span_id, 16) for span in (await store.list_spans(trace_id=f"{writer:032x}", limit=10**6)).items
            }
            told = {int(entry[2]) for entry in acknowledged if entry[0] == "s" and entry[1] == str(writer)}
            assert told <= kept
        await store.add_spans([span(99, 1)])


async def test_a_fork_must_connect_again(store: Store) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.new_event_loop().run_until_complete(store.list_tasks())
            message = "no error"
        except StoreError as error:
            message = str(error)
        except BaseException as error:
            message = repr(error)
        os.write(write_end, json.dumps(message).encode())
        os._exit(0)
    os.close(write_end)
    await asyncio.to_thread(os.waitpid, pid, 0)
    with os.fdopen(read_end) as pipe:
        message = json.loads(pipe.read())
    assert "Connect again in the child" in message
