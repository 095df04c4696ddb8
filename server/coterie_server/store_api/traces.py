"""Spans and rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from coterie.store.base import Page, Store
from coterie.store.filters import SpanFilter
from coterie.vocabulary import Reward, Span
from coterie_server.store_api import as_kept
from coterie_server.store_api.parameters import Added, Ids, OfAttempts, OfRollout, SearchQuery, SpansQuery
from coterie_server.store_api.routes import get, post
from coterie_server.tokens import Scope


@post("/v1/spans", Scope.AGENT)
async def add_spans(store: Store, spans: list[Span]) -> None:
    """Add spans, all or none. One whose (trace id, span id) exists already is left as it is."""
    await store.add_spans(spans)


@post("/v1/spans/get", Scope.READ)
async def get_spans(store: Store, request: OfAttempts) -> Mapping[str, Sequence[Span]]:
    """All spans of each attempt, by start time."""
    return await as_kept.get_spans(store, request.attempt_ids)


@get("/v1/spans", Scope.READ)
async def list_spans(store: Store, query: SpansQuery) -> Page[Span]:
    """Spans in the order in which they arrived."""
    return await as_kept.list_spans(
        store, rollout_id=query.rollout_id, trace_id=query.trace_id, after=query.after, limit=query.limit
    )


@get("/v1/spans/search", Scope.READ)
async def search_spans(store: Store, query: SearchQuery) -> Page[Span]:
    """Spans that fit all conditions, in the order in which they arrived, or newest first."""
    where = SpanFilter(**{field.name: getattr(query, field.name) for field in dataclasses.fields(SpanFilter)})
    return await store.search_spans(where, newest_first=query.newest_first, after=query.after, limit=query.limit)


@post("/v1/traces/delete", Scope.TRAINER)
async def delete_traces(store: Store, request: Ids) -> None:
    """Remove the spans of these traces that belong to no rollout of this store. Unknown ids are no error."""
    await store.delete_traces(request.ids)


@post("/v1/rewards", Scope.AGENT)
async def add_rewards(store: Store, rewards: list[Reward]) -> Added:
    """Add rewards, all or none, to attempts that exist."""
    await store.add_rewards(rewards)
    return Added([reward.id for reward in rewards])


@post("/v1/rewards/get", Scope.READ)
async def get_rewards(store: Store, request: OfAttempts) -> Mapping[str, Sequence[Reward]]:
    """All rewards of each attempt, in order of time."""
    return await store.get_rewards(request.attempt_ids)


@get("/v1/rewards", Scope.READ)
async def list_rewards(store: Store, query: OfRollout) -> Page[Reward]:
    """Rewards in the order in which they arrived."""
    return await store.list_rewards(rollout_id=query.rollout_id, after=query.after, limit=query.limit)
