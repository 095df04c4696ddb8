"""Clients that go away, servers that go away, answers that get lost: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from server_parts import ServerProcess

import coterie
from coterie.errors import ConfigError, StoreError, StoreUnavailableError
from coterie.store.base import Store
from coterie.store.http import HttpStore
from coterie.vocabulary import AttemptState, Resource, ResourceKind, Rollout, RolloutState, Span, Task, new_id


@pytest.fixture
async def store(server: ServerProcess) -> AsyncIterator[Store]:
    async with coterie.connect(server.address, token=server.admin) as store:
        await store.add_tasks([Task("t", 1)])
        yield store


async def queue_one(store: Store) -> Rollout:
    rollout = Rollout("t", run_id=new_id("run"))
    await store.enqueue([rollout])
    return rollout


# Clients that go away

LEASE = """
import asyncio, sys
import coterie

async def main(url, token, run_id):
    async with coterie.connect(url, token=token) as store:
        print("waiting", flush=True)
        await store.lease("doomed", lease_seconds=600, wait_seconds=60, run_id=run_id)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_worker_killed_while_it_waits_takes_nothing(server: ServerProcess, store: Store) -> None:
    run_id = new_id("run")
    command = [sys.executable, "-c", LEASE, server.address, server.admin, run_id]
    worker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"waiting\n"
    await asyncio.sleep(0.3)
    worker.kill()
    await worker.wait()
    await store.enqueue([Rollout("t", run_id=run_id)])
    (lease,) = await store.lease("next", wait_seconds=20, run_id=run_id)
    # Whether the first had been given it for a moment, it is not held by it.
    assert lease.attempt.worker == "next"


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002, 0.004, 0.01])
async def test_an_answer_that_nobody_reads_takes_nothing(server: ServerProcess, store: Store, delay: float) -> None:
    rollout = await queue_one(store)
    request = json.dumps({"worker": "gone", "lease_seconds": 600, "run_id": rollout.run_id}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(lease_request(server, request))
        if delay == 0:
            # It reads no more, and says so at once: what is written to it is lost.
            connection.shutdown(socket.SHUT_WR)
        await asyncio.sleep(delay)
        if _readable(connection):
            return  # It had the answer in time: then it holds the lease.
    async with asyncio.timeout(20):
        (lease,) = await store.lease("next", wait_seconds=20, run_id=rollout.run_id)
    assert lease.attempt.worker == "next"


async def test_who_has_the_answer_and_goes_away_at_once_keeps_what_it_took(server: ServerProcess, store: Store) -> None:
    """As a client does that makes a connection for each request."""
    for _ in range(60):
        rollout = await queue_one(store)
        (lease,) = json.loads(lease_and_close(server, rollout))
        await asyncio.sleep(0.01)
        assert list(await store.heartbeat([lease["attempt"]["id"]])) == [lease["attempt"]["id"]]


def lease_and_close(server: ServerProcess, rollout: Rollout) -> bytes:
    """The answer's body, read whole; then the connection is closed in the same breath."""
    request = json.dumps({"worker": "brief", "run_id": rollout.run_id}).encode()
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(lease_request(server, request))
        while not answer.endswith(b"]"):
            piece = connection.recv(65536)
            assert piece, f"the server hung up after {answer!r}"
            answer += piece
    return answer.partition(b"\r\n\r\n")[2]


def lease_request(server: ServerProcess, body: bytes) -> bytes:
    head = (
        "POST /v1/rollouts/lease HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {server.admin}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*head, "", ""]).encode() + body


def _readable(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


async def test_a_call_that_is_cancelled_takes_nothing_however_late(store: Store) -> None:
    rollout = await queue_one(store)
    for _ in range(12):
        waiting = asyncio.create_task(store.lease("gone", lease_seconds=600, run_id=rollout.run_id))
        await asyncio.sleep(random.uniform(0, 0.008))
        waiting.cancel()
        try:
            leases = await waiting
        except asyncio.CancelledError:
            leases = await store.lease("next", wait_seconds=20, run_id=rollout.run_id)
        (lease,) = leases
        await store.finish(lease.attempt.id, AttemptState.CANCELLED)


# Answers that get lost


@dataclass
class Line:
    """A line to the server that can be cut."""

    port: int
    lose_answers: int = 0
    """So many of the next answers are lost: the server has done what was asked, the client is cut off."""
    lost: int = 0


@asynccontextmanager
async def line_to(server: ServerProcess) -> AsyncIterator[Line]:
    line = Line(0)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", server.port)

        async def onwards() -> None:
            try:
                while data := await reader.read(65536):
                    there[1].write(data)
                    await there[1].drain()
            finally:
                there[1].close()

        going = asyncio.create_task(onwards())
        try:
            while data := await there[0].read(65536):
                if line.lose_answers:
                    line.lose_answers -= 1
                    line.lost += 1
                    break
                writer.write(data)
                await writer.drain()
        finally:
            going.cancel()
            there[1].close()
            writer.close()

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as listening:
        line.port = listening.sockets[0].getsockname()[1]
        yield line


async def test_work_whose_answer_was_lost_is_given_once_more_to_the_same(server: ServerProcess, store: Store) -> None:
    rollout = await queue_one(store)
    async with (
        line_to(server) as line,
        coterie.connect(f"http://127.0.0.1:{line.port}", token=server.admin) as far,
    ):
        line.lose_answers = 2
        (lease,) = await far.lease("w", lease_seconds=600, run_id=rollout.run_id)
        assert line.lost == 2
    *before, last = (await store.get_attempts([rollout.id]))[rollout.id]
    assert (lease.rollout.id, lease.attempt) == (rollout.id, last)
    # The server takes back what it gave to a connection that it sees cut at once.
    assert {attempt.state for attempt in before} <= {AttemptState.CANCELLED}
    assert (await store.finish(last.id, AttemptState.SUCCEEDED)).state is RolloutState.SUCCEEDED


async def test_writes_whose_answer_was_lost_are_done_once(server: ServerProcess, store: Store) -> None:
    rollout = await queue_one(store)
    (lease,) = await store.lease("w", run_id=rollout.run_id)
    span = Span(new_id("")[1:].ljust(32, "0"), "1" * 16, "chat", 1, 2, attempt_id=lease.attempt.id)
    name = new_id("prompt")
    async with (
        line_to(server) as line,
        coterie.connect(f"http://127.0.0.1:{line.port}", token=server.admin) as far,
    ):
        line.lose_answers = 1
        await far.add_spans([span])
        line.lose_answers = 1
        await far.enqueue([Rollout("t", id=(again := new_id("ro")), run_id=rollout.run_id)])
        line.lose_answers = 1
        resource = await far.publish(Resource(name, ResourceKind.PROMPT, {"text": "a"}))
        line.lose_answers = 1
        ended = await far.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[replace(span, span_id="2" * 16)])
        assert line.lost == 4
    assert ended.state is RolloutState.SUCCEEDED
    assert [kept.span_id for kept in (await store.get_spans([lease.attempt.id]))[lease.attempt.id]] == [
        "1" * 16,
        "2" * 16,
    ]
    assert list(await store.list_resources(name=name)) == [resource]
    assert {found.id for found in (await store.list_rollouts(run_id=rollout.run_id)).items} == {rollout.id, again}


# Servers that go away


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as first:
        port, token = first.port, first.admin
        rollouts = [Rollout("t", max_attempts=50) for _ in range(100)]
        succeeded: list[str] = []
        written: list[tuple[str, str]] = []
        async with coterie.connect(first.address, token=token) as store:
            await store.add_tasks([Task("t", 1)])

            async def enqueue() -> None:
                for start in range(0, len(rollouts), 10):
                    await store.enqueue(rollouts[start : start + 10])
                    await asyncio.sleep(0.05)

            async def write(writer: int) -> None:
                number = 0
                while len(succeeded) < len(rollouts):
                    span = Span(f"{writer + 1:032x}", f"{number:016x}", "chat", 1, 2)
                    await store.add_spans([span])
                    written.append((span.trace_id, span.span_id))
                    number += 1
                    await asyncio.sleep(0.005)

            async def work(worker: str) -> None:
                while len(succeeded) < len(rollouts):
                    for lease in await store.lease(worker, limit=3, lease_seconds=20, wait_seconds=1):
                        ended = await store.finish(lease.attempt.id, AttemptState.SUCCEEDED)
                        assert ended.state is RolloutState.SUCCEEDED
                        succeeded.append(lease.rollout.id)

            async def kill_and_restart() -> None:
                server = first
                for _ in range(2):
                    await asyncio.sleep(random.uniform(0.1, 0.6))
                    server.process.send_signal(signal.SIGKILL)
                    await asyncio.to_thread(server.process.wait, 20)
                    server = ServerProcess(tmp_path, "--port", str(port))
                    later.append(server)
                    await asyncio.to_thread(server.start)

            later: list[ServerProcess] = []
            try:
                async with asyncio.timeout(100):
                    await asyncio.gather(
                        enqueue(),
                        kill_and_restart(),
                        *map(write, range(4)),
                        *(work(f"w{number}") for number in range(4)),
                    )
                assert sorted(succeeded) == sorted(rollout.id for rollout in rollouts)
                attempts = await store.get_attempts([rollout.id for rollout in rollouts])
                for tried in attempts.values():
                    assert [attempt.state for attempt in tried].count(AttemptState.SUCCEEDED) == 1
                kept = [
                    (span.trace_id, span.span_id)
                    for writer in range(4)
                    for span in (await store.list_spans(trace_id=f"{writer + 1:032x}", limit=100_000)).items
                ]
                assert len(set(kept)) == len(kept)
                assert set(written) <= set(kept)
            finally:
                for server in later:
                    server.__exit__(None, None, None)


async def test_a_server_that_stays_away_is_an_error_that_says_what_to_do(unused_tcp_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=rf"127\.0\.0\.1:{unused_tcp_port}.*coterie serve"):
        await HttpStore.open(f"http://127.0.0.1:{unused_tcp_port}", token="x", retry_seconds=0.5)
    assert time.monotonic() - began < 10


async def test_a_token_that_is_wrong_is_an_error_at_once(server: ServerProcess) -> None:
    with pytest.raises(ConfigError, match="COTERIE_TOKEN"):
        await HttpStore.open(server.address, token="ct_wrong")
    with pytest.raises(ConfigError, match="No token"):
        await HttpStore.open(server.address)


async def test_what_is_no_store_is_told_so() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<p/>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(StoreError, match="no `coterie serve`"):
            await HttpStore.open(f"http://127.0.0.1:{port}", token="x", retry_seconds=0.5)


@pytest.mark.parametrize("address", ["http://", "http://user:secret@host:1", "http://host:1/?a=1"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coterie.connect(address)
    assert "secret" not in str(caught.value)


# Large and many


async def test_a_list_larger_than_a_request_goes_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerProcess(tmp_path, config={"limits": {"body_bytes": 200_000}}) as server:
        async with coterie.connect(server.address, token=server.admin) as store:
            await store.add_tasks(tasks := [Task(f"t{number:03}", "x" * 5_000) for number in range(100)])
            assert list((await store.list_tasks()).items) == tasks
            rollout = Rollout("t000")
            await store.enqueue([rollout])
            (lease,) = await store.lease("w")
            spans = [
                Span("a" * 32, f"{number:016x}", "chat", number, number, None, rollout.id, lease.attempt.id)
                for number in range(100)
            ]
            spans = [replace(span, attributes={"text": "x" * 5_000}) for span in spans]
            assert (await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=spans)).state.terminal
            assert list((await store.get_spans([lease.attempt.id]))[lease.attempt.id]) == spans
            with pytest.raises(StoreError, match="larger than 200000 bytes"):
                await store.add_tasks([Task("large", "x" * 300_000)])
            monkeypatch.setattr("coterie.store.http.LARGEST_REQUEST", 50_000)
            await store.add_spans([replace(span, trace_id="b" * 32) for span in spans])
            assert len((await store.list_spans(trace_id="b" * 32)).items) == 100


async def test_what_is_written_at_once_goes_together(server: ServerProcess, store: Store) -> None:
    def requests() -> float:
        with server.client() as client:
            lines = client.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("coterie_requests_total") and 'route="/v1/spans"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts if 'method="POST"' in line)

    before = requests()
    trace = new_id("")[1:].ljust(32, "0")
    await asyncio.gather(*(store.add_spans([Span(trace, f"{n:016x}", "chat", 1, 2)]) for n in range(200)))
    assert requests() - before == 2
    assert len((await store.list_spans(trace_id=trace)).items) == 200


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *more], check=True, capture_output=True, timeout=60)
    return folder / "cert.pem", folder / "key.pem"


async def test_certificates_are_verified(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = map(str, certificate)
    with ServerProcess(tmp_path, "--tls-cert", cert, "--tls-key", key) as server:
        assert server.address.startswith("https:")
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="SSL_CERT_FILE"):
            await HttpStore.open(server.address, token=server.admin)
        assert time.monotonic() - began < 10
        async with await HttpStore.open(server.address, token=server.admin, ca_file=cert) as store:
            await store.check()
        monkeypatch.setenv("SSL_CERT_FILE", cert)
        async with coterie.connect(server.address, token=server.admin) as store:
            await store.check()
        with pytest.raises(ConfigError, match="CA file"):
            await HttpStore.open(server.address, token=server.admin, ca_file=key + ".none")
