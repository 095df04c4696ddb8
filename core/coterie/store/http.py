"""The store behind a server: each method of the interface as a request, with the errors that the local stores raise."""

# ruff: noqa: D102 - the methods are documented where they are promised, in base.py
from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from coterie.errors import ConfigError, CoterieError, StoreError
from coterie.store import records, wire
from coterie.store.base import Page, Store, checked_lease
from coterie.store.filters import SpanFilter
from coterie.store.garbage import no_search_for_garbage
from coterie.store.http_calls import Calls, RequestTooLargeError
from coterie.store.http_spans import MergedWrites
from coterie.store.retention import Pruned, Retention
from coterie.store.transfer import Records
from coterie.vocabulary import (
    JSON,
    Attempt,
    AttemptState,
    Decision,
    FailureCause,
    Lease,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    ResourceStatus,
    Reward,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Span,
    Task,
    new_id,
)

Item = TypeVar("Item")

RETRY_SECONDS = 60.0
"""How long a request is tried again while the server is away."""
LARGEST_REQUEST = 8_000_000
"""Bytes of a request; a larger list is sent in several. A server that takes less says so, and gets smaller ones."""
ATTEMPTS_AT_ONCE = 256
"""Attempts whose spans are asked for in one request."""


class HttpStore(Store):
    """A store behind ``coterie serve``. Usable from any thread and event loop, also from several; not across a fork.

    When the server is away, a call is tried again for ``retry_seconds`` before it raises StoreUnavailableError. A list
    that is larger than one request may be is sent in several: when a later one is refused, the earlier ones are kept.
    """

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        token: str | None = None,
        retry_seconds: float = RETRY_SECONDS,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Reach the server at ``url``, such as ``https://host:8080``.

        ``token`` is what ``coterie token`` printed. ``ca_file`` names the certificates by which the server's is
        verified, when the system does not know its issuer.

        Raises:
            ConfigError: the address is wrong, or the server does not know the token.
            StoreUnavailableError: no server answered in time, or its certificate is not trusted.
            StoreError: what answers there is no store.
        """
        store = cls(url, token=token, retry_seconds=retry_seconds, ca_file=ca_file)
        try:
            greeting = await store._calls.get("/v1")
            if not isinstance(greeting, dict) or greeting.get("name") != "coterie":
                raise StoreError(f"store {url}: what answers there is no `coterie serve`. Check host, port and path.")
        except BaseException:
            await store.close()
            raise
        return store

    def __init__(
        self, url: str, *, token: str | None, retry_seconds: float, ca_file: str | os.PathLike[str] | None
    ) -> None:
        self.url = checked_address(url)
        self._calls = Calls(self.url, token=token, retry_seconds=retry_seconds, ca_file=ca_file)
        self._merged: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, MergedWrites] = weakref.WeakKeyDictionary()

    async def close(self) -> None:
        await self._calls.close()

    async def check(self) -> None:
        await self._calls.get("/v1/check")

    # Tasks

    async def add_tasks(self, tasks: Sequence[Task]) -> None:
        await self._add("/v1/tasks", tasks)

    async def get_tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        return await self._get_all("/v1/tasks/get", Task, ids)

    async def list_tasks(
        self, *, dataset: str | None = None, split: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Task]:
        return await self._page("/v1/tasks", Task, {"dataset": dataset, "split": split}, after, limit)

    # Rollouts and attempts

    async def enqueue(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            records.rollout_row(rollout)
        await self._add("/v1/rollouts", rollouts)

    async def lease(
        self,
        worker: str,
        *,
        limit: int = 1,
        lease_seconds: float = 60.0,
        wait_seconds: float = 0.0,
        run_id: str | None = None,
        request_id: str | None = None,
    ) -> Sequence[Lease]:
        lease_seconds = checked_lease(lease_seconds)
        give_up_at = time.monotonic() + wait_seconds
        while True:
            left = give_up_at - time.monotonic()
            poll_seconds = min(max(left, 0.0), wire.LONGEST_POLL_SECONDS)
            # What has waited in vain took nothing, so the next request is a new one.
            this_id = request_id or new_id("rq")
            body = wire.encode(
                {
                    "worker": worker,
                    "limit": limit,
                    "lease_seconds": lease_seconds,
                    "wait_seconds": poll_seconds,
                    "run_id": run_id,
                    "request_id": this_id,
                }
            )
            try:
                answer = await self._calls.post("/v1/rollouts/lease", body, poll_seconds=poll_seconds)
                leases = self._read(answer, wire.many(Lease))
            except asyncio.CancelledError:
                # The answer may be on its way: nobody would do the work until the lease ran out.
                await self._give_back(this_id)
                raise
            if leases or left <= poll_seconds:
                return leases

    async def begin(self, rollout: Rollout, worker: str, *, lease_seconds: float = 60.0) -> Lease:
        records.rollout_row(rollout)
        body = {"rollout": rollout, "worker": worker, "lease_seconds": checked_lease(lease_seconds)}
        return await self._one("/v1/rollouts/begin", Lease, body)

    async def heartbeat(self, attempt_ids: Sequence[str], *, lease_seconds: float = 60.0) -> Collection[str]:
        body = {"attempt_ids": attempt_ids, "lease_seconds": checked_lease(lease_seconds)}
        answer = await self._calls.post("/v1/attempts/heartbeat", wire.encode(body))
        return self._read(answer, _held)

    async def finish(
        self,
        attempt_id: str,
        state: AttemptState,
        *,
        cause: FailureCause | None = None,
        error: str | None = None,
        warnings: Sequence[str] = (),
        spans: Sequence[Span] = (),
        rewards: Sequence[Reward] = (),
        retry: bool = True,
    ) -> Rollout:
        end = {
            "attempt_id": attempt_id,
            "state": state,
            "cause": cause,
            "error": error,
            "warnings": warnings,
            "spans": spans,
            "rewards": _checked_rewards(rewards),
            "retry": retry,
        }
        body = wire.encode(end)
        if len(body) <= LARGEST_REQUEST:
            with suppress(RequestTooLargeError):
                return await self._one("/v1/attempts/finish", Rollout, body)
        # More than one request may hold: the spans first, so that the attempt has them when it ends.
        await self.add_spans(spans)
        return await self._one("/v1/attempts/finish", Rollout, end | {"spans": ()})

    async def cancel(self, rollout_ids: Sequence[str], *, reason: str = "cancelled") -> None:
        await self._post("/v1/rollouts/cancel", {"ids": rollout_ids, "reason": reason})

    async def requeue(self, rollout_ids: Sequence[str], *, attempts: int = 1) -> None:
        await self._post("/v1/rollouts/requeue", {"ids": rollout_ids, "attempts": attempts})

    async def delete_rollouts(self, rollout_ids: Sequence[str]) -> None:
        await self._post("/v1/rollouts/delete", {"ids": rollout_ids})

    async def get_rollouts(self, ids: Sequence[str]) -> Sequence[Rollout]:
        return await self._get_all("/v1/rollouts/get", Rollout, ids)

    async def list_rollouts(
        self,
        *,
        run_id: str | None = None,
        mode: Mode | None = None,
        state: RolloutState | None = None,
        step: int | None = None,
        task_id: str | None = None,
        group_id: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[Rollout]:
        filters = {
            "run_id": run_id,
            "mode": mode,
            "state": state,
            "step": step,
            "task_id": task_id,
            "group_id": group_id,
        }
        return await self._page("/v1/rollouts", Rollout, filters, after, limit)

    async def wait(
        self, rollout_ids: Sequence[str], *, at_least: int | None = None, timeout_seconds: float | None = None
    ) -> Sequence[Rollout]:
        give_up_at = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        needed = len(set(rollout_ids)) if at_least is None else at_least
        while True:
            left = give_up_at - time.monotonic()
            poll_seconds = min(max(left, 0.0), wire.LONGEST_POLL_SECONDS)
            body = wire.encode({"ids": rollout_ids, "at_least": at_least, "timeout_seconds": poll_seconds})
            answer = await self._calls.post("/v1/rollouts/wait", body, poll_seconds=poll_seconds)
            rollouts = self._read(answer, wire.many(Rollout))
            ended = {rollout.id for rollout in rollouts if rollout.state.terminal}
            if len(ended) >= needed or left <= poll_seconds:
                return rollouts

    async def get_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Sequence[Attempt]]:
        return await self._get_by("/v1/attempts/get", Attempt, "rollout_ids", rollout_ids, wire.LARGEST_PAGE)

    async def list_attempts(self, *, after: str | None = None, limit: int = 1000) -> Page[Attempt]:
        return await self._page("/v1/attempts", Attempt, {}, after, limit)

    # Spans and rewards

    async def add_spans(self, spans: Sequence[Span]) -> None:
        if not spans:
            return
        loop = asyncio.get_running_loop()
        merged = self._merged.get(loop)
        if merged is None:
            merged = self._merged[loop] = MergedWrites(self._send_spans, largest=LARGEST_REQUEST)
        await self._add("/v1/spans", spans, merged.write)

    async def get_spans(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Span]]:
        return await self._get_by("/v1/spans/get", Span, "attempt_ids", attempt_ids, ATTEMPTS_AT_ONCE)

    async def list_spans(
        self, *, rollout_id: str | None = None, trace_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Span]:
        return await self._page("/v1/spans", Span, {"rollout_id": rollout_id, "trace_id": trace_id}, after, limit)

    async def search_spans(
        self, where: SpanFilter, *, newest_first: bool = False, after: str | None = None, limit: int = 100
    ) -> Page[Span]:
        filters = {field.name: getattr(where, field.name) for field in dataclasses.fields(where)}
        return await self._page("/v1/spans/search", Span, filters | {"newest_first": newest_first}, after, limit)

    async def delete_traces(self, trace_ids: Sequence[str]) -> None:
        await self._post("/v1/traces/delete", {"ids": trace_ids})

    async def add_rewards(self, rewards: Sequence[Reward]) -> None:
        await self._add("/v1/rewards", _checked_rewards(rewards))

    async def get_rewards(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Reward]]:
        return await self._get_by("/v1/rewards/get", Reward, "attempt_ids", attempt_ids, wire.LARGEST_PAGE)

    async def list_rewards(
        self, *, rollout_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Reward]:
        return await self._page("/v1/rewards", Reward, {"rollout_id": rollout_id}, after, limit)

    # Resources

    async def publish(self, resource: Resource) -> Resource:
        async def published_already() -> Resource | None:
            # A repetition would make another version. Of those there are, ours is the one made at the same nanosecond.
            for version in await self.list_resources(name=resource.name):
                # Somebody may have marked it since.
                as_sent = dataclasses.replace(version, version=0, status=kept.status, scores=kept.scores)
                if as_sent == kept:
                    return version
            return None

        body = wire.encode(resource)
        kept = wire.one(Resource)(wire.decode(body))
        found = published_already if resource.version == 0 else None
        answer = await self._calls.post("/v1/resources", body, found=found)
        if isinstance(answer, Resource):
            return answer
        return self._read(answer, wire.one(Resource))

    async def mark(
        self,
        name: str,
        version: int,
        status: ResourceStatus | None = None,
        *,
        scores: Mapping[str, JSON] | None = None,
    ) -> Resource:
        if scores is not None:
            scores = records.of_json(records.to_json(scores, f"resource {name!r}", "scores"))
        body = {"name": name, "version": version, "status": status, "scores": scores}
        return await self._one("/v1/resources/mark", Resource, body)

    async def get_resource(self, name: str, version: int | None = None) -> Resource:
        answer = await self._calls.get("/v1/resources/get", {"name": name, "version": version})
        return self._read(answer, wire.one(Resource))

    async def list_resources(
        self, *, kind: ResourceKind | None = None, name: str | None = None, status: ResourceStatus | None = None
    ) -> Sequence[Resource]:
        return await self._all_of("/v1/resources", Resource, {"kind": kind, "name": name, "status": status})

    # Runs

    async def save_run(self, run: Run) -> None:
        await self._calls.post("/v1/runs", wire.encode(run))

    async def get_run(self, run_id: str) -> Run:
        answer = await self._calls.get("/v1/runs/get", {"run_id": run_id})
        return self._read(answer, wire.one(Run))

    async def list_runs(
        self, *, state: RunState | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Run]:
        return await self._page("/v1/runs", Run, {"state": state}, after, limit)

    async def add_metrics(self, metrics: Sequence[Metrics]) -> None:
        await self._add("/v1/metrics", metrics)

    async def get_metrics(self, run_id: str, *, stage: str | None = None) -> Sequence[Metrics]:
        return await self._all_of("/v1/metrics", Metrics, {"run_id": run_id, "stage": stage})

    async def add_decision(self, decision: Decision) -> None:
        await self._add("/v1/decisions", [decision])

    async def get_decisions(self, run_id: str) -> Sequence[Decision]:
        return await self._all_of("/v1/decisions/get", Decision, {"run_id": run_id})

    async def list_decisions(
        self, *, run_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Decision]:
        return await self._page("/v1/decisions", Decision, {"run_id": run_id}, after, limit)

    # The store as a whole

    async def load(self, records: Records) -> None:
        _checked_rewards(records.rewards)
        await self._calls.post("/v1/load", wire.encode(records), answer_seconds=_LONG_SECONDS)

    async def prune(self, retention: Retention) -> Pruned:
        answer = await self._calls.post("/v1/prune", wire.encode(retention), answer_seconds=_LONG_SECONDS)
        return self._read(answer, wire.one(Pruned))

    async def statistics(self) -> Mapping[str, JSON]:
        counts: Mapping[str, JSON] = await self._calls.get("/v1/statistics")
        return counts

    # Machinery

    async def _add(self, path: str, items: Sequence[Any], send: Callable[[bytes], Any] | None = None) -> None:
        """Send a list, in several requests if it is too large for one."""
        body = wire.encode(items)
        parts = -(-len(body) // LARGEST_REQUEST)
        if parts == 1 or len(items) == 1:
            try:
                await (self._calls.post(path, body) if send is None else send(body))
                return
            except RequestTooLargeError:
                if len(items) == 1:
                    raise
                parts = 2
        size = max(1, -(-len(items) // parts))
        for start in range(0, len(items), size):
            await self._add(path, items[start : start + size], send)

    async def _send_spans(self, body: bytes) -> None:
        await self._calls.post("/v1/spans", body)

    async def _post(self, path: str, body: Mapping[str, object]) -> None:
        await self._calls.post(path, wire.encode(body))

    async def _one(self, path: str, kind: type[Item], body: Mapping[str, object] | bytes) -> Item:
        answer = await self._calls.post(path, body if isinstance(body, bytes) else wire.encode(body))
        return self._read(answer, wire.one(kind))

    async def _get_all(self, path: str, kind: type[Item], ids: Sequence[str]) -> tuple[Item, ...]:
        items: list[Item] = []
        for start in range(0, len(ids), wire.LARGEST_PAGE):
            answer = await self._calls.post(path, wire.encode({"ids": ids[start : start + wire.LARGEST_PAGE]}))
            items += self._read(answer, wire.many(kind))
        return tuple(items)

    async def _get_by(
        self, path: str, kind: type[Item], name: str, ids: Sequence[str], at_once: int
    ) -> dict[str, tuple[Item, ...]]:
        items: dict[str, tuple[Item, ...]] = {}
        for start in range(0, len(ids), at_once):
            answer = await self._calls.post(path, wire.encode({name: ids[start : start + at_once]}))
            items |= self._read(answer, wire.many_by_key(kind))
        return items

    async def _all_of(self, path: str, kind: type[Item], parameters: Mapping[str, object]) -> tuple[Item, ...]:
        return self._read(await self._calls.get(path, parameters), wire.many(kind))

    async def _page(
        self, path: str, kind: type[Item], filters: Mapping[str, object], after: str | None, limit: int
    ) -> Page[Item]:
        items: list[Item] = []
        while True:
            at_once = min(limit - len(items), wire.LARGEST_PAGE)
            answer = await self._calls.get(path, {**filters, "after": after, "limit": at_once})
            page = self._read(answer, wire.page(kind))
            items += page.items
            after = page.cursor
            if after is None or len(items) >= limit:
                return Page(tuple(items), after)

    async def _give_back(self, request_id: str) -> None:
        """Tell the server that nobody works on what this request for work was given."""
        with suppress(CoterieError, OSError, TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await self._calls.post_once("/v1/rollouts/unlease", wire.encode({"request_id": request_id}))

    def _read(self, answer: Any, read: Callable[[Any], Item]) -> Item:
        try:
            with no_search_for_garbage():
                return read(answer)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreError(
                f"store {self.url}: this client cannot read what the server answered: {type(error).__name__}: {error}, "
                f"in {str(answer)[:200]}. Use the same version of Coterie on both sides."
            ) from error


_GIVE_BACK_SECONDS = 2.0
_LONG_SECONDS = 3600.0
"""For requests whose work grows with the store."""


def _held(answer: Any) -> frozenset[str]:
    return frozenset(answer["held"])


def checked_address(url: str) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        ConfigError: it lacks a host, or holds more than scheme, host, port and path.
    """
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"store {parts.scheme}://{parts.hostname}: write no user or password into the address. Give the token as "
            "connect(…, token=…) or in COTERIE_TOKEN."
        )
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"store {url!r}: give scheme, host and port, for example http://127.0.0.1:8080.")
    return url.rstrip("/")


def _checked_rewards(rewards: Sequence[Reward]) -> Sequence[Reward]:
    """The rewards with their values as floats."""
    return [dataclasses.replace(reward, value=records.reward_row(reward)["value"]) for reward in rewards]
