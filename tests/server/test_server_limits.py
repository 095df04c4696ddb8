"""Clients that ask for too much, send what is no HTTP, or go to sleep."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from server_parts import ServerProcess, error_of

from coterie_server.tokens import Scope

MIB = 2**20
LIMITS = {
    "body_bytes": MIB,
    "header_bytes": 8192,
    "silence_seconds": 1.0,
    "idle_seconds": 2.0,
    "requests_per_second": 40,
    "requests_at_once": 3,
    "connections": 60,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small limits."""
    with ServerProcess(tmp_path_factory.mktemp("small"), config={"limits": LIMITS}) as running:
        yield running


@pytest.fixture
def token(small: ServerProcess) -> str:
    """One that no other test has used up."""
    return small.token(Scope.ADMIN)


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer_to(server: ServerProcess, request: bytes, more: bytes = b"", times: int = 0) -> bytes:
    """What a server says to these bytes, until it closes or is silent; empty if it closes without a word."""
    with connect(server) as client:
        try:
            client.sendall(request)
            for _ in range(times):
                client.sendall(more)
        except OSError:
            pass
        client.settimeout(6)
        return received(client)


def received(client: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := client.recv(65536):
            answer += piece
            head, found, body = answer.partition(b"\r\n\r\n")
            length = next(
                (int(line[16:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            if found and len(body) >= length:
                break
    except OSError:
        pass
    return answer


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    assert b"Traceback" not in answer
    return int(answer[9:12])


def post(token: str, *headers: str, path: str = "/v1/tasks") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def test_a_body_of_a_gigabyte_is_refused_and_never_held(small: ServerProcess, token: str) -> None:
    process = psutil.Process(small.process.pid)
    before = process.memory_info().rss
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        announced = answer_to(small, post(token, "Content-Length: 1073741824"), bytes(MIB), times=64)
        assert status_of(announced) == 413
        chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
        streamed = answer_to(small, post(token, "Transfer-Encoding: chunked"), chunk, times=64)
        assert status_of(streamed) == 413
    finally:
        done.set()
        watcher.join()
    assert b"BodyTooLargeError" in streamed
    assert peak - before < 24 * MIB
    with small.client(token) as client:
        assert client.get("/v1/rollouts").status_code == 200


def test_a_client_hears_that_its_body_was_too_large(small: ServerProcess, token: str) -> None:
    with small.client(token) as client:
        for path in ("/v1/tasks", "/v1/traces", "/gateway/v1/chat/completions"):
            answer = client.post(path, content=bytes(MIB + 1), headers={"content-type": "application/x-protobuf"})
            assert answer.status_code == 413, path
            error_of(answer)


def test_a_body_refused_before_any_of_it_came_is_read_to_its_end(small: ServerProcess, token: str) -> None:
    with connect(small) as client:
        client.sendall(post(token, f"Content-Length: {MIB + 1}"))
        assert status_of(received(client)) == 413
        client.sendall(bytes(MIB + 1))
        client.sendall(f"GET /v1/rollouts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert status_of(received(client)) == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -1"],
        ["Content-Length: 5x"],
        ["Transfer-Encoding: gzip, chunked, x"],
        ["X-A: b\rX-Admin: yes", "Content-Length: 0"],
        ["X-A: b\nX-Admin: yes\x00", "Content-Length: 0"],
        ["X-A\r\n : b", "Content-Length: 0"],
        ["X A: b", "Content-Length: 0"],
    ],
)
def test_headers_that_lie_or_smuggle_are_refused(small: ServerProcess, token: str, headers: list[str]) -> None:
    answer = answer_to(small, post(token, *headers) + b"0\r\n\r\n")
    assert status_of(answer) in (400, 431), answer
    assert b'{"error":{"type":"BadRequestError"' in answer


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 200 + b"\r\n\r\n"]
)
def test_what_is_no_http_is_refused(small: ServerProcess, said: bytes) -> None:
    assert status_of(answer_to(small, said)) == 400


def test_what_is_sent_after_the_body_is_another_request_or_refused(small: ServerProcess, token: str) -> None:
    answer = answer_to(small, post(token, "Content-Length: 2") + b"[]" + b"surplus\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in answer


def test_long_headers_are_refused(small: ServerProcess, token: str) -> None:
    assert status_of(answer_to(small, post(token, "X-Long: " + "x" * 9000))) == 431
    assert status_of(answer_to(small, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == 431
    # One header that never ends, and ever more headers.
    assert status_of(answer_to(small, b"GET / HTTP/1.1\r\nX-Long: ", b"x" * 1000, times=100)) == 431
    assert status_of(answer_to(small, b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 100, times=100)) == 431


def test_slow_and_half_open_clients_are_let_go(small: ServerProcess, token: str) -> None:
    began = time.monotonic()
    silent, headers_only, body_only, done = (connect(small) for _ in range(4))
    with silent, headers_only, body_only, done:
        headers_only.sendall(b"GET /health HTT")
        body_only.sendall(post(token, "Content-Length: 100") + b"[")
        done.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(received(done)) == 200
        assert status_of(received(headers_only)) == 408
        assert status_of(received(body_only)) == 408
        assert silent.recv(10) == b""
        assert done.recv(10) == b""
    assert time.monotonic() - began < 15


def test_one_drop_at_a_time_is_too_slow_only_when_it_stops(small: ServerProcess, token: str) -> None:
    with connect(small) as client:
        client.sendall(post(token, "Content-Length: 2"))
        for piece in (b"[", b"]"):
            time.sleep(0.7)
            client.sendall(piece)
        assert status_of(received(client)) in (200, 204)


def test_a_token_has_a_rate(small: ServerProcess, token: str) -> None:
    one = f"GET /v1/check HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with connect(small) as client:
        # All at once, so that the test asks faster than the machine may be.
        client.sendall((one + "\r\n").encode() * 299 + (one + "Connection: close\r\n\r\n").encode())
        answers = b""
        while piece := client.recv(65536):
            answers += piece
    assert answers.count(b"HTTP/1.1 2") >= LIMITS["requests_per_second"]
    assert answers.count(b"HTTP/1.1 429") > 0
    assert answers.count(b"HTTP/1.1 2") + answers.count(b"HTTP/1.1 429") == 300
    assert b"\r\nretry-after: 1\r\n" in answers
    assert b'{"error":{"type":"TooManyRequestsError"' in answers
    with small.client(token) as again:
        assert again.get("/v1/rollouts", headers={"authorization": f"Bearer {small.admin}"}).status_code == 200
        time.sleep(1.0)
        assert again.get("/v1/rollouts").status_code == 200


def test_a_token_has_so_many_requests_at_once(small: ServerProcess, token: str) -> None:
    waiting = {"worker": "w", "wait_seconds": 3.0}

    def wait(at: int) -> None:
        with small.client(token) as client:
            statuses[at] = client.post("/v1/rollouts/lease", json=waiting).status_code

    statuses = dict.fromkeys(range(6), 0)
    threads = [threading.Thread(target=wait, args=[at]) for at in statuses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses.values()) == [200, 200, 200, 429, 429, 429]
    with small.client(token) as client:
        assert client.get("/v1/rollouts").status_code == 200


def test_so_many_connections_and_no_more(small: ServerProcess) -> None:
    clients = [connect(small) for _ in range(80)]
    try:
        clients[-1].settimeout(5)
        assert status_of(received(clients[-1])) == 503
    finally:
        for client in clients:
            client.close()
    give_up_at = time.monotonic() + 10
    while True:
        try:
            assert httpx.get(small.address + "/health", timeout=5, trust_env=False).status_code == 200
            return
        except (httpx.HTTPError, AssertionError):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)


def test_paths_and_methods_that_are_not_there(small: ServerProcess, token: str) -> None:
    with small.client(token) as client:
        nothing = client.get("/v1/nothing")
        assert (nothing.status_code, error_of(nothing)[0]) == (404, "UnknownPathError")
        method = client.delete("/v1/tasks")
        assert (method.status_code, error_of(method)[0]) == (405, "MethodNotAllowedError")
        assert "POST" in method.headers["allow"]
        assert client.get("/v1/traces").headers["allow"] == "POST"
        for path in ("/v1/tasks/", "/V1/tasks", "//v1/tasks", "/v1/%2e%2e/tasks", "/gateway", "/v1/tasks%00"):
            answer = client.get(path)
            assert answer.status_code == 404, path
            error_of(answer)
        assert client.get("/v1/tasks%0d%0aX-Admin:%20yes").headers.get("x-admin") is None


def test_every_path_is_described(small: ServerProcess, token: str) -> None:
    with small.client(token) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/traces", "/health", "/ready", "/metrics", "/v1/spans"} <= set(paths)
        for path, methods in paths.items():
            allowed = client.request("PATCH", path).headers["allow"].split(", ")
            assert {method.upper() for method in methods} <= set(allowed), path
            time.sleep(0.03)


def test_unknown_fields_are_named(small: ServerProcess, token: str) -> None:
    with small.client(token) as client:
        answer = client.post("/v1/rollouts/lease", json={"worker": "w", "wait_secs": 3})
        assert answer.status_code == 422
        assert "wait_secs" in error_of(answer)[1]
        answer = client.get("/v1/rollouts", params={"colour": "red"})
        assert answer.status_code == 422
        assert "colour" in error_of(answer)[1]
