"""``coterie serve``: how it starts, with whom it speaks, and how it ends."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import os
import re
import signal
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from postgres_server import shared_server
from server_parts import ServerProcess, error_of

import coterie as coterie_package
from coterie.errors import ConfigError, CoterieError
from coterie.vocabulary import AttemptState, Rollout, RolloutState, Span, Task
from coterie_server.commands.serve import check, serve
from coterie_server.redaction import RedactingFormatter
from coterie_server.settings import Settings
from coterie_server.tokens import Scope


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A self-signed certificate for this machine, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def test_a_whole_life(tmp_path: Path) -> None:
    """First start, work, a stop that drains, a second start that finds everything."""
    with ServerProcess(tmp_path) as server:
        told = "".join(server.told)
        assert server.address.startswith("http://127.0.0.1:")
        assert "export COTERIE_TOKEN=$(cat " in told
        assert server.admin not in told, "a log would keep it"
        for private in (tmp_path / "coterie.db.token", tmp_path / "coterie.db.tokens"):
            assert stat.S_IMODE(private.stat().st_mode) == 0o600
        token = server.admin
        attempt = asyncio.run(work(server.address, token))
        waiting = Waiting(server, token)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 15
        assert waiting.result() == (200, [])
    with ServerProcess(tmp_path) as server:
        assert server.admin == token
        assert "shown only now" not in "".join(server.told)
        asyncio.run(find(server.address, token, attempt))
    assert (tmp_path / "server.log").read_text() == ""


async def work(address: str, token: str) -> str:
    async with coterie_package.connect(address, token=token) as store:
        await store.add_tasks([Task("t", "question")])
        await store.enqueue([Rollout("t", id="ro-1"), Rollout("t", id="ro-2")])
        (lease,) = await store.lease("w", limit=1)
        span = Span("1" * 32, "1" * 16, "chat", 1, 2, rollout_id="ro-1", attempt_id=lease.attempt.id)
        await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[span])
        assert len(await store.lease("w", limit=1)) == 1
        return lease.attempt.id


async def find(address: str, token: str, attempt: str) -> None:
    async with coterie_package.connect(address, token=token) as store:
        first, second = await store.get_rollouts(["ro-1", "ro-2"])
        assert (first.state, second.state) == (RolloutState.SUCCEEDED, RolloutState.RUNNING)
        assert [span.name for span in (await store.get_spans([attempt]))[attempt]] == ["chat"]


class Waiting:
    """A long poll in a thread of its own."""

    def __init__(self, server: ServerProcess, token: str) -> None:
        self._answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._wait, args=[server, token])
        self._thread.start()
        with server.client(token) as client:
            give_up_at = time.monotonic() + 60
            while "coterie_requests_waiting 1.0" not in client.get("/metrics").text:
                assert time.monotonic() < give_up_at
                time.sleep(0.1)

    def _wait(self, server: ServerProcess, token: str) -> None:
        with server.client(token) as client:
            self._answer = client.post("/v1/rollouts/lease", json={"worker": "w", "wait_seconds": 25})

    def result(self) -> tuple[int, object]:
        self._thread.join(20)
        assert self._answer is not None
        return self._answer.status_code, self._answer.json()


def test_while_it_stops(tmp_path: Path) -> None:
    """It says that it is not ready, ends what runs, and a client that never ends does not hold it for ever."""
    config = {"notice_seconds": 1.5, "drain_seconds": 2}
    with ServerProcess(tmp_path, config=config) as server, server.client() as client:
        assert client.get("/ready").status_code == 200
        stuck = socket.create_connection(("127.0.0.1", server.port))
        stuck.sendall(f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.admin}\r\n".encode())
        stuck.sendall(b"Content-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        not_ready = client.get("/ready")
        assert (not_ready.status_code, error_of(not_ready)[0]) == (503, "NotReadyError")
        assert client.get("/health").status_code == 200
        assert client.post("/v1/tasks", json=[]).status_code < 300
        assert server.process.wait(15) == 0
        stuck.close()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config={"notice_seconds": 60}) as server:
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.process.poll() is None
        begun = time.monotonic()
        assert server.stop(signal.SIGINT) == 130
        assert time.monotonic() - begun < 5


def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    arguments = ["--tls-cert", str(cert), "--tls-key", str(key), "--host", "0.0.0.0", "--grpc-port", "0"]
    with ServerProcess(tmp_path, *arguments) as server:
        assert server.address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        address = f"https://localhost:{server.port}"
        answer = httpx.get(address + "/ready", verify=trusted, timeout=20, trust_env=False)
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(address + "/ready", timeout=20, trust_env=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(address.replace("https", "http") + "/ready", timeout=20, trust_env=False)
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_address.rpartition(':')[2]}", credentials) as channel:
            metadata = [("authorization", f"Bearer {server.admin}")]
            TraceServiceStub(channel).Export(ExportTraceServiceRequest(), metadata=metadata, timeout=20)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"host": "0.0.0.0"}, "--insecure"),
    ({"host": "::"}, "--tls-cert"),
    ({"host": "no.such.host.invalid"}, "no such host"),
    ({"workers": 2}, "PostgreSQL"),
    ({"store": "http://127.0.0.1:1"}, "another server"),
    ({"store": "mysql://db/coterie"}, "unknown kind"),
    ({"tls_cert": Path("missing.pem")}, "missing.pem"),
    ({"tls_key": Path("missing.pem")}, "--tls-cert"),
    ({"config": Path("missing.yaml")}, "missing.yaml"),
    ({"config": Path("wrong.yaml")}, "there is no setting 'limits.body_byte'"),
    ({"port": 70000}, "port"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_it_refuses_to_start_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("limits: {body_byte: 3}")
    with pytest.raises(ConfigError, match=re.escape(told)):
        serve(**{"port": 0, **given})
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"], "something was made"


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen"):
        serve(port=taken.getsockname()[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [{"insecure": True}, {"behind_proxy": True}])
def test_beyond_this_machine_when_it_is_said(how: dict[str, bool]) -> None:
    check(Settings(host="0.0.0.0", **how))


def test_secrets_are_shown_nowhere(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The password of a database, tokens, keys in headers and addresses: not in what is told, logs, errors, figures."""
    secret = "Very5ecret"
    # It is for a process of its own.
    monkeypatch.setattr("coterie_server.serving.write_log", lambda: None)
    with pytest.raises(CoterieError) as refused:
        serve(store=f"postgresql://app:{secret}@127.0.0.1:1/db?x={secret}", port=0, tokens=tmp_path / "tokens")
    assert secret not in str(refused.value) + "".join(capfd.readouterr())
    with server.client() as client:
        token = server.token(Scope.READ)
        shown = [
            client.get(f"/v1/nothing?api_key={secret}", headers={"authorization": f"Bearer ct_{secret}"}),
            client.get(f"/v1/rollouts?token={secret}"),
            client.get("/v1/rollouts", headers={"x-api-key": f"ct_{secret}", "authorization": ""}),
            client.post("/v1/tasks", headers={"authorization": f"Bearer {token}"}, content=b"{"),
            client.get("/openapi.json"),
            client.get("/ready"),
            client.get("/docs"),
            client.get("/metrics"),
        ]
    for answer in shown:
        assert secret not in answer.text, answer.url
        assert token not in answer.text
    told = "".join(server.told) + server.log.read_text()
    for one in (secret, token, server.admin):
        assert one not in told


def test_the_log_hides_secrets() -> None:
    record = logging.LogRecord("coterie", logging.ERROR, "x.py", 1, "%s", ("",), None)
    for text, kept in [
        ("cannot reach postgresql://app:Very5ecret@db/x", "cannot reach postgresql://app:…@db/x"),
        ("Authorization: Bearer Very5ecret-and-long", "Authorization: Bearer …"),
        ("GET /x?a=1&api_key=Very5ecret&b=2", "GET /x?a=1&api_key=…&b=2"),
        ("token ct_Very5ecret0123456789abcdef failed", "token ct_… failed"),
        ("conninfo host=db password=Very5ecret user=a", "conninfo host=db password=… user=a"),
        ("nothing: to@hide", "nothing: to@hide"),
    ]:
        record.args = (text,)
        assert RedactingFormatter("%(message)s").format(record) == kept


@pytest.mark.postgres
def test_workers_share_a_port_and_replace_each_other(tmp_path: Path) -> None:
    url = shared_server().new_database("workers", empty=True)
    arguments = ["--store", url, "--workers", "2", "--tokens", str(tmp_path / "coterie.db.tokens")]
    with ServerProcess(tmp_path, *arguments) as server:
        children = children_of(server.process.pid)
        assert len(children) == 2
        asyncio.run(work(server.address, server.admin))
        os.kill(children[0], signal.SIGKILL)
        give_up_at = time.monotonic() + 40
        while len(set(children_of(server.process.pid)) - {children[0]}) < 2:
            assert time.monotonic() < give_up_at
            time.sleep(0.2)
        for _ in range(10):
            with server.client() as client:
                assert client.get("/v1/rollouts").status_code == 200
        with server.client() as client:
            assert (
                'coterie_requests_total{method="GET",route="/v1/rollouts",status="200"}' in client.get("/metrics").text
            )
        left = children_of(server.process.pid)
        assert server.stop() == 0
        assert not [child for child in left if Path(f"/proc/{child}").exists()]


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []
