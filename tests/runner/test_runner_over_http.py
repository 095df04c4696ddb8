"""Runners behind a server that is killed and comes back, with tokens that may run, and with others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import coterie
from coterie.plugins import plugin_entry_points
from coterie.vocabulary import AttemptState, Mode, Rollout, RolloutState, Task

pytest.importorskip("coterie_server.commands.serve")

from coterie_server.tokens import Scope, TokenFile

COTERIE = Path(sys.executable).with_name("coterie")
PLUGINS_OFF = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(entry.name for entry in plugin_entry_points())}
APP = """
import asyncio
import coterie

@coterie.rollout
async def team(task):
    coterie.reward(0.5, name="early")
    await asyncio.sleep(task.input)
    return 1.0
"""


class Server:
    """``coterie serve`` on one port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.folder / "serve.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [COTERIE, "serve", "--store", "served.db", "--port", str(self.port)],
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )
        end = time.monotonic() + 60
        while b"listens at" not in log.read_bytes():
            assert time.monotonic() < end, log.read_text()
            assert self._process.poll() is None, log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def token(self, scope: str) -> str:
        shown, _ = TokenFile(self.folder / "served.db.tokens").create([Scope(scope)])
        return shown

    @contextmanager
    def runner(self, token: str, *options: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [COTERIE, "run", "app.py:team", "--store", self.url, *options],
            cwd=self.folder,
            env={**os.environ, **PLUGINS_OFF, "COTERIE_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "app.py").write_text(APP)
    served = Server(folder)
    try:
        served.start()
        yield served
    finally:
        served.kill()


@pytest.mark.timeout(300)
def test_two_runners_go_on_though_their_server_is_killed(server: Server) -> None:
    token = server.token("runner")
    admin = (server.folder / "served.db.token").read_text().strip()
    with ExitStack() as stack:
        runners = [stack.enter_context(server.runner(token, "--concurrency", "8", "--lease", "200")) for _ in range(2)]
        for process in runners:
            assert process.stderr is not None
            assert "8 at once" in process.stderr.readline()
        asyncio.run(_played(server, admin))
        for process in runners:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said


async def _played(server: Server, token: str) -> None:
    async with coterie.connect(server.url, token=token) as store:
        await store.add_tasks([Task("nap", 0.3)])
        rollouts = [Rollout("nap", mode=Mode.VAL) for _ in range(96)]
        await store.enqueue(rollouts)
        waiting = asyncio.create_task(store.wait([rollout.id for rollout in rollouts], timeout_seconds=100))
        for _ in range(2):
            await asyncio.sleep(0.5)
            server.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.start)
        ended = await waiting
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
        rewards = await store.get_rewards([each[-1].id for each in attempts.values()])
    # One attempt is allowed, and leases are long: none may have been lost with an answer, and no end with the server.
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    for each in attempts.values():
        assert [attempt.state for attempt in each] == [AttemptState.SUCCEEDED]
    assert {tuple(reward.name for reward in each) for each in rewards.values()} == {("early", "reward")}


@pytest.mark.parametrize(
    ("scope", "says"), [("read", "runner"), (None, "COTERIE_TOKEN"), ("wrong", "token")], ids=["read", "none", "wrong"]
)
def test_a_token_that_may_not_run_is_refused_at_once(server: Server, scope: str | None, says: str) -> None:
    token = "" if scope is None else "not a token" if scope == "wrong" else server.token(scope)
    with server.runner(token) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert said.startswith("Error: ")
    assert says in said
    assert "Traceback" not in said
