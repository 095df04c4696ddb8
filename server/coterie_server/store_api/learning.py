"""Resources, runs, metrics and decisions."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.store.base import Page, Store
from coterie.vocabulary import Decision, Metrics, Resource, Run
from coterie_server.store_api.parameters import (
    Added,
    Marking,
    MetricsQuery,
    OfRun,
    ResourceQuery,
    ResourcesQuery,
    RunQuery,
    RunsQuery,
)
from coterie_server.store_api.routes import get, post
from coterie_server.tokens import Scope


@post("/v1/resources", Scope.TRAINER)
async def publish(store: Store, resource: Resource) -> Resource:
    """Add the next version of a named resource. Gives it with its version. An active one retires the one before."""
    return await store.publish(resource)


@post("/v1/resources/mark", Scope.TRAINER)
async def mark(store: Store, marking: Marking) -> Resource:
    """Give a version of a resource another status, or scores. Making one active retires the one before."""
    return await store.mark(marking.name, marking.version, marking.status, scores=marking.scores)


@get("/v1/resources/get", Scope.AGENT, Scope.READ)
async def get_resource(store: Store, query: ResourceQuery) -> Resource:
    """A version of a resource, the active one by default. 404 says what there is."""
    return await store.get_resource(query.name, query.version)


@get("/v1/resources", Scope.AGENT, Scope.READ)
async def list_resources(store: Store, query: ResourcesQuery) -> Sequence[Resource]:
    """The active version of each resource, the newest if none is; with a name or a status all versions that fit."""
    return await store.list_resources(kind=query.kind, name=query.name, status=query.status)


@post("/v1/runs", Scope.TRAINER)
async def save_run(store: Store, run: Run) -> None:
    """Add a run, or replace the one of this id."""
    await store.save_run(run)


@get("/v1/runs/get", Scope.RUNNER, Scope.READ)
async def get_run(store: Store, query: RunQuery) -> Run:
    """One run. 404 names the newest ones."""
    return await store.get_run(query.run_id)


@get("/v1/runs", Scope.READ)
async def list_runs(store: Store, query: RunsQuery) -> Page[Run]:
    """Runs, newest first."""
    return await store.list_runs(state=query.state, after=query.after, limit=query.limit)


@post("/v1/metrics", Scope.TRAINER)
async def add_metrics(store: Store, metrics: list[Metrics]) -> None:
    """Add figures of steps; the same (run, step, stage) is replaced."""
    await store.add_metrics(metrics)


@get("/v1/metrics", Scope.READ)
async def get_metrics(store: Store, query: MetricsQuery) -> Sequence[Metrics]:
    """A run's figures by step."""
    return await store.get_metrics(query.run_id, stage=query.stage)


@post("/v1/decisions", Scope.TRAINER)
async def add_decisions(store: Store, decisions: list[Decision]) -> Added:
    """Add audit entries. One whose id exists already is left as it is."""
    for decision in decisions:
        await store.add_decision(decision)
    return Added([decision.id for decision in decisions])


@get("/v1/decisions/get", Scope.READ)
async def get_decisions(store: Store, query: RunQuery) -> Sequence[Decision]:
    """A run's audit entries in order of time."""
    return await store.get_decisions(query.run_id)


@get("/v1/decisions", Scope.READ)
async def list_decisions(store: Store, query: OfRun) -> Page[Decision]:
    """Audit entries in the order in which they arrived."""
    return await store.list_decisions(run_id=query.run_id, after=query.after, limit=query.limit)
