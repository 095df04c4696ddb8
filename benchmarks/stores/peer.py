"""The peer, agentlightning 0.3.0, as it is measured. Runs in an environment of its own: its pins contradict ours."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from stores.operations import Attempt, Backend

SECONDS_TO_START = 60


class Agentlightning(Backend):
    """``kind``: inmemory or http."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None

    async def open(self) -> None:
        import agentlightning
        from agentlightning.types import EnqueueRolloutRequest, OtelResource, Span, SpanContext, TraceStatus

        logging.getLogger("agentlightning").setLevel(logging.ERROR)
        self._span, self._status, self._context = Span, TraceStatus, SpanContext
        self._resource, self._request = OtelResource, EnqueueRolloutRequest
        if self.kind == "inmemory":
            self.store = agentlightning.InMemoryLightningStore(thread_safe=False)
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://localhost:{probe.getsockname()[1]}"
        start = "import sys; from agentlightning.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", start, "store", "--port", url.rpartition(":")[2], "--log-level", "ERROR"]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        self.process = self._server.pid
        self.otlp = f"{url}/v1/traces", {}, "agentlightning"
        wait_for(f"{url}/v1/agl/health")
        self.store = agentlightning.LightningStoreClient(url)

    async def close(self) -> None:
        if self._server is not None:
            await self.store.close()
            self._server.terminate()
            self._server.wait(SECONDS_TO_START)

    def make_span(self, span: dict[str, Any]) -> Any:
        names = ("rollout_id", "attempt_id", "sequence_id", "trace_id", "span_id", "name", "attributes")
        context = self._context(trace_id=span["trace_id"], span_id=span["span_id"], is_remote=False, trace_state={})
        return self._span(
            **{name: span[name] for name in names},
            parent_id=None,
            start_time=span["start_ns"] / 1e9,
            end_time=span["end_ns"] / 1e9,
            status=self._status(status_code="OK"),
            events=[],
            links=[],
            parent=None,
            resource=self._resource(attributes={}, schema_url=""),
            context=context,
        )

    async def start(self) -> Attempt:
        started = await self.store.start_rollout(input={"task": 1})
        return started.rollout_id, started.attempt.attempt_id

    async def enqueue(self, count: int) -> None:
        if count == 1:
            await self.store.enqueue_rollout(input={"task": 1})
        else:
            await self.store.enqueue_many_rollouts([self._request(input={"task": n}) for n in range(count)])

    async def lease(self) -> Attempt | None:
        taken = await self.store.dequeue_rollout(worker_id="w")
        return (taken.rollout_id, taken.attempt.attempt_id) if taken else None

    async def finish(self, attempt: Attempt) -> None:
        await self.store.update_attempt(*attempt, status="succeeded")

    async def add(self, spans: Sequence[Any]) -> None:
        if len(spans) == 1:
            await self.store.add_span(spans[0])
        else:
            await self.store.add_many_spans(spans)

    async def spans_of(self, attempt: Attempt, limit: int | None) -> int:
        more = {} if limit is None else {"limit": limit}
        return len(await self.store.query_spans(attempt[0], **more))

    async def first_rollouts(self) -> int:
        return len(await self.store.query_rollouts(limit=20))


def wait_for(url: str) -> None:
    give_up_at = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.2)
