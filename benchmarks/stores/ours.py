"""Coterie's stores, as they are measured: a SQLite file, PostgreSQL, and a server in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import coterie
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Rollout, Span, Task, new_id
from stores.operations import Attempt, Backend
from stores.served import coterie_serve, postgresql

SERVERS = {"postgresql": postgresql, "http": coterie_serve}


class Coterie(Backend):
    """``kind``: sqlite, postgresql or http."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.process = os.getpid()
        self._servers = ExitStack()
        self.store: Store

    async def open(self) -> None:
        if self.kind == "sqlite":
            self.store = await coterie.connect(self.folder / "store.db")
        else:
            served = self._servers.enter_context(SERVERS[self.kind](self.folder))
            self.process = served.process
            self.store = await coterie.connect(served.url, token=served.token)
            if served.token is not None:
                self.otlp = f"{served.url}/v1/traces", {"Authorization": f"Bearer {served.token}"}, "coterie"
        await self.store.add_tasks([Task("t", {"question": "?"})])

    async def close(self) -> None:
        await self.store.close()
        self._servers.close()

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
