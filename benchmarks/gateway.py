"""What the gateway adds to a call, beside LiteLLM's proxy: latency of one call after another, and calls a second of 32 at
once, streamed and not.

python benchmarks/gateway.py [--calls N] [--rounds N] [--peer PYTHON] [--json FILE]

A scripted model server (written for speed, so that it does not hide the proxies), the gateway (``coterie serve`` with a
SQLite store, recording every call) and LiteLLM's proxy (as it comes) run in processes of their own. The rounds of the three
ways, direct, gateway, LiteLLM, are interleaved; each figure is the median of its rounds.

LiteLLM's pins contradict ours, so it has an environment of its own: ``--peer`` names its Python; by default one is made from
``requirements/bench-gateway-peer.txt``. ``--peer none`` leaves it out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facts.machine import machine
from peers.environments import peer_python

AT_ONCE = 32
QUESTION = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "You are one of a team of agents. " * 20},
        {"role": "user", "content": "How many cats are there in the shop, and what do they cost together? " * 5},
    ],
    "temperature": 0.7,
    "max_tokens": 64,
}
WORDS = [f"word{number} " for number in range(32)]


# The scripted model server


def answer_body() -> bytes:
    """A whole answer of 32 words."""
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 150, "completion_tokens": 32, "total_tokens": 182}
    top = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny"}
    return json.dumps({**top, "choices": [choice], "usage": usage}).encode()


def answer_events() -> list[bytes]:
    """The same answer, streamed: an event a word."""
    top = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in WORDS]
    deltas.append(({}, "stop"))
    events = [
        {**top, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
        for delta, reason in deltas
    ]
    return [*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n"]


class Model(asyncio.Protocol):
    """Answers at once; a streamed answer leaves in one piece an event."""

    whole = answer_body()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(whole)
    events = tuple(b"%x\r\n%s\r\n" % (len(event), event) for event in answer_events())
    stream_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            found = re.search(rb"content-length: *(\d+)", self.rest[:end], re.IGNORECASE)
            length = int(found[1]) if found else 0
            if len(self.rest) < end + 4 + length:
                return
            body, self.rest = self.rest[end + 4 : end + 4 + length], self.rest[end + 4 + length :]
            if re.search(rb'"stream": *true', body):
                self.transport.write(self.stream_head)
                for event in self.events:
                    self.transport.write(event)
                self.transport.write(b"0\r\n\r\n")
            else:
                self.transport.write(self.head + self.whole)


async def serve_model(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


# The client


class Client:
    """One connection, kept open: a client's own work would count as the proxy's."""

    def __init__(self, port: int, path: str, key: str) -> None:
        self._port = port
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        self._head = (head + "content-type: application/json\r\ncontent-length: %d\r\n\r\n").encode()

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)

    def close(self) -> None:
        self._writer.close()

    async def call(self, body: bytes) -> bytes:
        self._writer.write(self._head % len(body) + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"a call failed: {head.decode()}{(await self._reader.read(2000)).decode()}")
        found = re.search(rb"content-length: *(\d+)", head)
        if found is not None:
            return await self._reader.readexactly(int(found[1]))
        pieces = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(pieces)


async def one_after_another(client: Client, body: bytes, calls: int) -> float:
    """The median of a call's time, in ms."""
    await client.open()
    try:
        for _ in range(10):
            await client.call(body)
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            await client.call(body)
            times.append((time.perf_counter() - began) * 1000)
        return statistics.median(times)
    finally:
        client.close()


async def many_at_once(clients: Sequence[Client], body: bytes, calls: int) -> float:
    """Calls a second of all clients together."""
    for client in clients:
        await client.open()
    left = iter(range(calls))

    async def work(client: Client) -> None:
        for _ in left:
            await client.call(body)

    try:
        began = time.perf_counter()
        await asyncio.gather(*map(work, clients))
        return calls / (time.perf_counter() - began)
    finally:
        for client in clients:
            client.close()


# The processes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_for(url: str, key: str, running: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.poll() is None:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2):
            return
        time.sleep(0.2)
    raise SystemExit(f"nothing answers at {url}:\n{log.read_text()[-3000:]}")


async def prepared_store(folder: Path, model_port: int) -> None:
    import coterie
    from coterie.vocabulary import Resource, ResourceKind

    content = {
        "base_url": f"http://127.0.0.1:{model_port}/v1",
        "model": "tiny",
        "policy": "team",
        "version": 1,
        "token_ids": False,
    }
    async with coterie.connect(folder / "bench.db") as store:
        await store.publish(Resource("team", ResourceKind.ENDPOINT, content))


def token_for(folder: Path) -> str:
    from coterie_server.tokens import Scope, TokenFile

    return TokenFile(folder / "tokens.json").create([Scope.AGENT])[0]


@contextlib.contextmanager
def gateway(folder: Path, model_port: int) -> Iterator[tuple[int, str]]:
    asyncio.run(prepared_store(folder, model_port))
    token, port, log = token_for(folder), free_port(), folder / "gateway.log"
    command = [str(Path(sys.executable).with_name("coterie")), "serve", "--store", f"sqlite:///{folder / 'bench.db'}"]
    command += ["--port", str(port), "--tokens", str(folder / "tokens.json")]
    with process(command, log) as running:
        wait_for(f"http://127.0.0.1:{port}/gateway/v1/models", token, running, log, 60)
        yield port, token


@contextlib.contextmanager
def litellm_proxy(python: str, folder: Path, model_port: int) -> Iterator[tuple[int, str]]:
    port, key, log, config = free_port(), "sk-bench-0123456789", folder / "litellm.log", folder / "litellm.yaml"
    to = {"model": "openai/tiny", "api_base": f"http://127.0.0.1:{model_port}/v1", "api_key": "none"}
    # YAML reads JSON.
    config.write_text(json.dumps({"model_list": [{"model_name": "tiny", "litellm_params": to}]}))
    command = [
        str(Path(python).parent / "litellm"),
        "--config",
        str(config),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    with process(command, log, **offline) as running:
        wait_for(f"http://127.0.0.1:{port}/v1/models", key, running, log, 180)
        yield port, key


def measured(ways: dict[str, tuple[int, str, str]], rounds: int, calls: int) -> dict[str, dict[str, float]]:
    bodies = {"whole": json.dumps(QUESTION).encode(), "streamed": json.dumps({**QUESTION, "stream": True}).encode()}
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for number in range(rounds + 1):
        for kind, body in bodies.items():
            for way, (port, key, path) in ways.items():
                slow = way == "litellm"
                some = max(50, calls // 8) if slow else calls
                latency = asyncio.run(one_after_another(Client(port, path, key), body, some // 2))
                clients = [Client(port, path, key) for _ in range(AT_ONCE)]
                rate = asyncio.run(many_at_once(clients, body, some))
                if number:  # the first warms up
                    found[way].setdefault(f"{kind}_p50_ms", []).append(latency)
                    found[way].setdefault(f"{kind}_per_second", []).append(rate)
    return {way: {name: statistics.median(values) for name, values in one.items()} for way, one in found.items()}


def shown(figures: dict[str, dict[str, float]]) -> None:
    for kind in ("whole", "streamed"):
        direct = figures["direct"]
        print(f"\n{kind}: {'p50 ms':>22} {'added ms':>10} {f'{AT_ONCE} at once, /s':>18}")
        for way, one in figures.items():
            added = one[f"{kind}_p50_ms"] - direct[f"{kind}_p50_ms"]
            print(f"  {way:<20} {one[f'{kind}_p50_ms']:>7.2f} {added:>10.2f} {one[f'{kind}_per_second']:>18.0f}")
        if "litellm" in figures:
            ours, peer = figures["gateway"], figures["litellm"]
            added = [one[f"{kind}_p50_ms"] - direct[f"{kind}_p50_ms"] for one in (ours, peer)]
            rate = ours[f"{kind}_per_second"] / peer[f"{kind}_per_second"]
            print(
                f"  the gateway adds 1/{added[1] / added[0]:.1f} of what LiteLLM adds, and serves {rate:.1f} times its calls"
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--calls", type=int, default=2000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--peer", help="the Python of an environment with litellm[proxy]; 'none' leaves it out")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--serve-model", type=int, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve_model:
        asyncio.run(serve_model(given.serve_model))
        return
    peer = peer_python("gateway", given.peer)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, model_port = Path(name), free_port()
        serving = [sys.executable, __file__, "--serve-model", str(model_port)]
        stack.enter_context(process(serving, folder / "model.log"))
        port, token = stack.enter_context(gateway(folder, model_port))
        path = "/v1/chat/completions"
        ways = {"direct": (model_port, "none", path), "gateway": (port, token, f"/gateway{path}")}
        if peer is not None:
            peer_port, key = stack.enter_context(litellm_proxy(peer, folder, model_port))
            ways["litellm"] = (peer_port, key, path)
        figures = measured(ways, given.rounds, given.calls)
    shown(figures)
    if given.json is not None:
        facts = machine() | {"calls": given.calls}
        given.json.write_text(json.dumps({"machine": facts, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
