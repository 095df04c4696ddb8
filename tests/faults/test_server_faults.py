"""What goes wrong around a server: its disk is full, its file cannot be used, clients take nothing, spans without end."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from server_parts import COMMAND, START_SECONDS, ServerProcess, error_of

import coterie
from coterie.store import wire
from coterie.store.checkpoints import EVERY_SECONDS
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import Rollout, RolloutState, Span, Task

MIB = 2**20


def spans(trace: int, count: int, size: int) -> list[Span]:
    return [
        Span(f"{trace:032x}", f"{number + 1:016x}", "chat", 1, 2, attributes={"text": "x" * size})
        for number in range(count)
    ]


# The disk


@contextmanager
def full_disk(process: psutil.Process) -> Iterator[None]:
    """The files of a process cannot grow beyond 1.5 MB, as if the disk were full."""
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, before)


def fill(client: httpx.Client) -> int:
    """Add spans until the server takes none any more; gives how many it took.

    SQLite's log has room again after it was folded into the file (``store/checkpoints.py``), as long as the file may grow:
    full is a disk on which nothing is taken after a pause that is longer than that needs.
    """
    kept, before = 0, -1
    while kept > before:
        before = kept
        kept += fill_once(client, kept)
        time.sleep(4 * EVERY_SECONDS)
    return kept


def fill_once(client: httpx.Client, before: int) -> int:
    """Add spans, smaller and smaller ones, until the server refuses the smallest; gives how many it took."""
    kept = 0
    for size in (20_000, 5_000, 10):
        for _ in range(500):
            answer = client.post("/v1/spans", content=wire.encode(spans(before + kept + 1, 1, size)))
            if answer.status_code != 204:
                break
            kept += 1
        kind, message = error_of(answer)
        assert (answer.status_code, kind) == (503, "StoreUnavailableError")
        assert "full" in message
        assert message.endswith((".", ")"))
    return kept


def test_a_full_disk_is_told_and_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, server.client() as client:
        client.post("/v1/tasks", content=wire.encode([Task("t", 1)]))
        with full_disk(psutil.Process(server.process.pid)):
            kept = fill(client)
            assert kept > 10
            refused = client.post("/v1/traces", json={"resourceSpans": []})
            assert refused.status_code == 200, "nothing to keep, nothing to refuse"
            not_ready = until_not_ready(client)
            assert (not_ready.status_code, error_of(not_ready)[0]) == (503, "NotReadyError")
            assert client.get("/health").status_code == 200
            # What is there can be read.
            assert len(client.get("/v1/spans", params={"limit": 1000}).json()["items"]) == kept
            waiting = Waiting(server)
            time.sleep(1.0)
        waiting.join()
        assert client.get("/ready").status_code == 200
        assert fill_some(client) == 5
        listed = client.get("/v1/spans", params={"limit": 1000}).json()["items"]
        assert len({(span["trace_id"], span["span_id"]) for span in listed}) == len(listed) == kept + 5
        assert server.stop() == 0
        log = server.log.read_text()
        assert "full" in log
        assert "Traceback" not in log


def until_not_ready(client: httpx.Client) -> httpx.Response:
    """Ask whether the server is ready until it is not: each time it writes a page, less than a span needs."""
    for _ in range(500):
        answer = client.get("/ready")
        if answer.status_code != 200:
            break
    return answer


def fill_some(client: httpx.Client) -> int:
    return sum(
        client.post("/v1/spans", content=wire.encode(spans(10_000 + number, 1, 20_000))).status_code == 204
        for number in range(5)
    )


class Waiting(threading.Thread):
    """A client of the store that queues work while the disk is full: it waits until there is room."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self._server = server
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            asyncio.run(self._queue())
        except BaseException as error:
            self._error = error

    def join(self, timeout: float | None = 30) -> None:
        super().join(timeout)
        assert not self.is_alive()
        assert self._error is None, self._error

    async def _queue(self) -> None:
        async with coterie.connect(self._server.address, token=self._server.admin) as store:
            many = [Rollout("t", metadata={"text": "x" * 20_000}) for _ in range(20)]
            await store.enqueue(many)
            kept = await store.get_rollouts([rollout.id for rollout in many])
            assert {rollout.state for rollout in kept} == {RolloutState.QUEUED}


# A file that cannot be used

WITHOUT_RIGHTS = """
import ctypes, os, sys
# Nothing is read-only for root, unless it gives up the right to pass over permissions.
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def serve(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``coterie serve`` by somebody who is not root, or no more than others."""
    command = [sys.executable, "-c", WITHOUT_RIGHTS, *COMMAND[1:], "serve", "--port", "0", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=START_SECONDS, check=False)


def refusal(told: subprocess.CompletedProcess[str]) -> str:
    assert told.returncode == 2, (told.returncode, told.stdout, told.stderr)
    (line,) = told.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert "listens at" not in told.stdout
    return line


async def make_store(path: Path) -> None:
    async with await SqliteStore.open(path) as store:
        await store.add_tasks([Task("t", 1)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, this is text", "not a SQLite database"),
        (b"SQLite format 3\x00" + b"garbage" * 1000, "file is not a database"),
        (None, "damaged"),
    ],
    ids=["text", "garbage", "damaged"],
)
def test_a_corrupt_file_is_refused_and_left_alone(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "team.db"
    if content is None:
        asyncio.run(make_store(path))
        content = path.read_bytes()
        # The first page stays, so that it is a database; what the page tells of is gone.
        content = content[:4096] + b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    told = refusal(serve(tmp_path, "--store", str(path)))
    assert "team.db" in told
    assert says in told
    assert path.read_bytes() == content


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_may_only_be_read_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "team.db"
    asyncio.run(make_store(path))
    before = path.read_bytes()
    (path if what == "file" else folder).chmod(0o444 if what == "file" else 0o555)
    try:
        told = refusal(serve(tmp_path, "--store", str(path), "--tokens", str(tmp_path / "team.tokens")))
        assert "team.db" in told
        assert "read-only" in told
        assert path.read_bytes() == before
        assert os.listdir(folder) == ["team.db"]
    finally:
        folder.chmod(0o755)


def test_a_folder_that_takes_no_tokens_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        told = refusal(serve(tmp_path, "--store", str(folder / "team.db")))
        assert "team.db" in told
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)


# Clients


def test_who_takes_nothing_of_an_answer_is_cut_off_and_holds_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config={"limits": {"silence_seconds": 1.0}}) as server, server.client() as client:
        for number in range(4):
            answer = client.post("/v1/spans", content=wire.encode(spans(number + 1, 400, 20_000)))
            assert answer.status_code == 204
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        request = (
            f"GET /v1/spans HTTP/1.1\r\nHost: x\r\nAccept: application/x-ndjson\r\n"
            f"Authorization: Bearer {server.admin}\r\n\r\n"
        ).encode()
        slow = []
        try:
            for _ in range(8):
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(request)
                slow.append(connection)
            ports = {connection.getsockname()[1] for connection in slow}
            give_up_at = time.monotonic() + 20
            peak = 0
            while connected(process) & ports:
                peak = max(peak, process.memory_info().rss)
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
        finally:
            for connection in slow:
                connection.close()
        # A page each, and not the whole listing, which is 32 MB each.
        assert peak - before < 8 * 20 * MIB
        assert client.get("/v1/rollouts").status_code == 200
        # The streams learn of it at the next page that they send.
        give_up_at = time.monotonic() + 20
        while "coterie_requests_waiting 0.0" not in client.get("/metrics").text:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)


def connected(process: psutil.Process) -> set[int]:
    """The ports of the clients that are connected to it."""
    return {each.raddr.port for each in process.net_connections("tcp") if each.raddr}


# Memory


def test_memory_stays_flat_over_many_spans(tmp_path: Path) -> None:
    """By the store's API and by OTLP, and what unpacks to half a gigabyte among them."""
    with ServerProcess(tmp_path) as server, server.client() as client:
        process = psutil.Process(server.process.pid)

        def send(trace: int) -> None:
            some = spans(trace, 250, 1000)
            if trace % 2:
                answer = client.post("/v1/spans", content=wire.encode(some))
            else:
                answer = client.post("/v1/traces", json=as_otlp(some))
            assert answer.status_code < 300, answer.text

        for trace in range(40):
            send(trace + 1)
        warm = process.memory_info().rss
        for trace in range(40, 120):
            send(trace + 1)
        assert process.memory_info().rss - warm < 24 * MIB
        packed = bomb(512)
        answer = client.post("/v1/traces", content=packed, headers=PACKED)
        assert answer.status_code == 413
        assert peak_of(process) - warm < 160 * MIB
    with sqlite3.connect(tmp_path / "coterie.db") as connection:
        assert connection.execute("SELECT count(*) FROM spans").fetchone() == (120 * 250,)
    connection.close()


PACKED = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}


def bomb(mebibytes: int) -> bytes:
    packing = zlib.compressobj(1, wbits=31)
    return b"".join(packing.compress(bytes(MIB)) for _ in range(mebibytes)) + packing.flush()


def peak_of(process: psutil.Process) -> int:
    """The most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def as_otlp(some: list[Span]) -> dict[str, object]:
    made = [
        {
            "traceId": span.trace_id,
            "spanId": span.span_id,
            "name": span.name,
            "startTimeUnixNano": str(span.start_ns),
            "endTimeUnixNano": str(span.end_ns),
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in span.attributes.items()],
        }
        for span in some
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}
