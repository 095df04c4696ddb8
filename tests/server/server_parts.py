"""``coterie serve`` as a process of its own, and what tests ask of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from coterie_server.tokens import Scope, TokenFile

START_SECONDS = 60
COMMAND = [sys.executable, "-c", "from coterie.cli import main; main()"]


class ServerProcess:
    """A server in a folder; use it as a context manager. ``arguments`` go to ``coterie serve``."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.arguments = ["--port", "0", *arguments]
        if config is not None:
            file = folder / "serve.yaml"
            file.write_text(json.dumps(config))
            self.arguments += ["--config", str(file)]
        self.env = {**os.environ, **(env or {})}
        self.address = ""
        self.grpc_address = ""
        self.told: list[str] = []
        self.log = folder / "server.log"

    @property
    def tokens(self) -> TokenFile:
        return TokenFile(self.folder / "coterie.db.tokens")

    @property
    def admin(self) -> str:
        return (self.folder / "coterie.db.token").read_text().strip()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def token(self, *scopes: Scope, **more: Any) -> str:
        shown, _ = self.tokens.create(scopes, **more)
        time.sleep(0.6)  # Until the server looks at the file again.
        return shown

    def client(self, token: str | None = None, **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token or self.admin}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=30, trust_env=False, verify=False, **more)

    def start(self) -> Self:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *self.arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            text=True,
        )
        kill = threading.Timer(START_SECONDS, self.process.kill)
        kill.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line)
            if line.startswith("Coterie listens at "):
                self.address = line.split()[3].rstrip(",")
            if line.startswith("OTLP over gRPC: "):
                self.grpc_address = line.split()[-1]
            if line.startswith("The API: "):
                break
        kill.cancel()
        assert self.address, self.log.read_text()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; gives the exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(START_SECONDS)
            finally:
                self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


def coterie(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def error_of(answer: httpx.Response) -> Sequence[str]:
    """Type and message of an error, which each must have."""
    error = answer.json()["error"]
    assert isinstance(error["type"], str)
    assert isinstance(error["message"], str)
    assert "Traceback" not in answer.text
    return error["type"], error["message"]
