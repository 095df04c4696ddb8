"""Waiting for work and for the end of rollouts: long polls, and a stream of ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

from coterie.errors import LeaseLostError, NotFoundError
from coterie.store import wire
from coterie.store.base import Store, attempt_id_of
from coterie.vocabulary import AttemptState, Lease, Rollout
from coterie_server.refusals import does_not_fit
from coterie_server.store_api.answers import send_json, send_piece, start_stream
from coterie_server.store_api.parameters import EndedQuery, LeaseRequest, UnleaseRequest, WaitRequest
from coterie_server.store_api.requests import Call
from coterie_server.store_api.routes import get, post
from coterie_server.store_api.watch import ClientWatch
from coterie_server.tokens import Scope

SILENCE_SECONDS = 15.0
"""A stream of ends says that it is still there at least so often: proxies close what is silent."""


@post("/v1/rollouts/lease", Scope.RUNNER, answers=Sequence[Lease])
async def lease(call: Call, request: LeaseRequest) -> None:
    """Take up to ``limit`` queued rollouts, oldest first, each with a new attempt; none if the time is up.

    When the client goes away before it is answered, nothing is taken. Who goes away afterwards may well have the answer, and
    keeps what it took.
    """
    leases: Sequence[Lease] = ()
    if request.wait_seconds:
        async with ClientWatch(call.receive, drains=True) as watch:
            leases = await _lease(call.store, request)
        if watch.gone:
            return
    else:
        leases = await _lease(call.store, request)
    if leases and await _has_gone(call):
        await _take_back(call.store, [lease.attempt.id for lease in leases])
        return
    await send_json(call, wire.encode(leases))


@post("/v1/rollouts/unlease", Scope.RUNNER)
async def unlease(store: Store, request: UnleaseRequest) -> None:
    """Take back what a request for work was given, because nobody heard the answer. The attempts do not count."""
    for number in count():
        try:
            await _take_back(store, [attempt_id_of(request.request_id, number)])
        except NotFoundError:
            return


@post("/v1/rollouts/wait", Scope.READ, answers=Sequence[Rollout])
async def wait(call: Call, request: WaitRequest) -> None:
    """Wait until rollouts have ended, or the time is up; gives all of them as they then are."""
    rollouts: Sequence[Rollout] | None = None
    async with ClientWatch(call.receive, drains=True) as watch:
        rollouts = await call.store.wait(
            request.ids, at_least=request.at_least, timeout_seconds=request.timeout_seconds
        )
        watch.only_note()
    if watch.gone:
        return
    if rollouts is None:
        rollouts = await call.store.get_rollouts(request.ids)
    await send_json(call, wire.encode(rollouts))


@get("/v1/rollouts/ended", Scope.READ, answers=Rollout)
async def ended(call: Call, query: EndedQuery) -> None:
    """Server-sent events: an event ``ended`` with each rollout as it ends, those that have ended first; at last ``done``.

    It tells of the rollouts that there are when the stream begins. When it ends without ``done``, ask again.
    """
    store = call.store
    async with ClientWatch(call.receive, drains=True) as watch:
        open_ids = await _rollouts_to_watch(store, query)
        await start_stream(call, b"text/event-stream")
        while open_ids:
            rollouts = await store.wait(open_ids, at_least=1, timeout_seconds=SILENCE_SECONDS)
            over = {rollout.id: rollout for rollout in rollouts if rollout.state.terminal}
            events = [b"event: ended\ndata: " + wire.encode(rollout) + b"\n\n" for rollout in over.values()]
            await send_piece(call, b"".join(events) or b": still here\n\n")
            open_ids = [id_ for id_ in open_ids if id_ not in over]
        watch.only_note()
        await send_piece(call, b"event: done\ndata: {}\n\n")
    if not watch.gone:
        await send_piece(call, b"", last=True)


_TURNS_TO_NOTICE = 5


async def _lease(store: Store, request: LeaseRequest) -> Sequence[Lease]:
    return await store.lease(
        request.worker,
        limit=request.limit,
        lease_seconds=request.lease_seconds,
        wait_seconds=request.wait_seconds,
        run_id=request.run_id,
        request_id=request.request_id,
    )


async def _has_gone(call: Call) -> bool:
    """True if the client has gone away, as far as can be read from its connection now."""
    async with ClientWatch(call.receive) as watch:
        watch.only_note()
        for _ in range(_TURNS_TO_NOTICE):
            if watch.gone:
                break
            await asyncio.sleep(0)
    return watch.gone


async def _take_back(store: Store, attempt_ids: Sequence[str]) -> None:
    for attempt_id in attempt_ids:
        with suppress(LeaseLostError):
            await store.finish(attempt_id, AttemptState.CANCELLED, error="the worker went away before it began")


async def _rollouts_to_watch(store: Store, query: EndedQuery) -> list[str]:
    by_filter = query.run_id is not None or query.group_id is not None
    if by_filter == bool(query.id):
        raise does_not_fit("query: give run_id or group_id or both, or id once or several times.")
    if query.id:
        await store.get_rollouts(query.id)
        return list(dict.fromkeys(query.id))
    ids: list[str] = []
    after: str | None = None
    while True:
        page = await store.list_rollouts(
            run_id=query.run_id, group_id=query.group_id, after=after, limit=wire.LARGEST_PAGE
        )
        ids += [rollout.id for rollout in page.items]
        after = page.cursor
        if after is None:
            return ids
