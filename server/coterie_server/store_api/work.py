"""Tasks and the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.store.base import Page, Store
from coterie.vocabulary import Attempt, Lease, Rollout, Task
from coterie_server.store_api.parameters import (
    Added,
    BeginRequest,
    CancelRequest,
    FinishRequest,
    HeartbeatRequest,
    Held,
    Ids,
    OfRollouts,
    PageQuery,
    RequeueRequest,
    RolloutsQuery,
    TasksQuery,
)
from coterie_server.store_api.routes import get, post
from coterie_server.tokens import Scope


@post("/v1/attempts/finish", Scope.RUNNER)
async def finish(store: Store, end: FinishRequest) -> Rollout:
    """End an attempt, with its last spans and rewards, all or nothing.

    Gives its rollout: a failed one may be in the queue again. Repeating the same end changes nothing. 409: the lease
    was lost meanwhile; the spans were kept.
    """
    return await store.finish(
        end.attempt_id,
        end.state,
        cause=end.cause,
        error=end.error,
        warnings=end.warnings,
        spans=end.spans,
        rewards=end.rewards,
        retry=end.retry,
    )


@post("/v1/attempts/heartbeat", Scope.RUNNER)
async def heartbeat(store: Store, request: HeartbeatRequest) -> Held:
    """Prolong leases. Gives the attempts that are still held; stop working on the others."""
    return Held(list(await store.heartbeat(request.attempt_ids, lease_seconds=request.lease_seconds)))


@post("/v1/rollouts", Scope.TRAINER)
async def enqueue(store: Store, rollouts: list[Rollout]) -> Added:
    """Queue rollouts, all or none. One whose id exists already is left as it is."""
    await store.enqueue(rollouts)
    return Added([rollout.id for rollout in rollouts])


@post("/v1/rollouts/begin", Scope.RUNNER)
async def begin(store: Store, request: BeginRequest) -> Lease:
    """Add a rollout and take it in one step, for work that a program does by itself."""
    return await store.begin(request.rollout, request.worker, lease_seconds=request.lease_seconds)


@post("/v1/rollouts/get", Scope.RUNNER, Scope.READ)
async def get_rollouts(store: Store, request: Ids) -> Sequence[Rollout]:
    """Rollouts by id, in this order. 404 names the ids that are missing."""
    return await store.get_rollouts(request.ids)


@post("/v1/rollouts/cancel", Scope.TRAINER)
async def cancel(store: Store, request: CancelRequest) -> None:
    """Withdraw rollouts that have not ended; running attempts learn it at their next heartbeat."""
    await store.cancel(request.ids, reason=request.reason)


@post("/v1/rollouts/requeue", Scope.TRAINER)
async def requeue(store: Store, request: RequeueRequest) -> None:
    """Put dead or cancelled rollouts back into the queue, with so many more attempts."""
    await store.requeue(request.ids, attempts=request.attempts)


@post("/v1/rollouts/delete", Scope.TRAINER)
async def delete_rollouts(store: Store, request: Ids) -> None:
    """Remove ended rollouts with their attempts, spans and rewards. Unknown ids are no error."""
    await store.delete_rollouts(request.ids)


@get("/v1/rollouts", Scope.READ)
async def list_rollouts(store: Store, query: RolloutsQuery) -> Page[Rollout]:
    """Rollouts in the order in which they were queued."""
    return await store.list_rollouts(
        run_id=query.run_id,
        mode=query.mode,
        state=query.state,
        step=query.step,
        task_id=query.task_id,
        group_id=query.group_id,
        after=query.after,
        limit=query.limit,
    )


@post("/v1/attempts/get", Scope.RUNNER, Scope.READ)
async def get_attempts(store: Store, request: OfRollouts) -> Mapping[str, Sequence[Attempt]]:
    """The attempts of each rollout, first to last; none for an id that is unknown."""
    return await store.get_attempts(request.rollout_ids)


@get("/v1/attempts", Scope.READ)
async def list_attempts(store: Store, query: PageQuery) -> Page[Attempt]:
    """All attempts, by id."""
    return await store.list_attempts(after=query.after, limit=query.limit)


@post("/v1/tasks", Scope.RUNNER)
async def add_tasks(store: Store, tasks: list[Task]) -> None:
    """Add tasks; one whose id exists already is replaced."""
    await store.add_tasks(tasks)


@post("/v1/tasks/get", Scope.RUNNER, Scope.READ)
async def get_tasks(store: Store, request: Ids) -> Sequence[Task]:
    """Tasks by id, in this order. 404 names the ids that are missing."""
    return await store.get_tasks(request.ids)


@get("/v1/tasks", Scope.READ)
async def list_tasks(store: Store, query: TasksQuery) -> Page[Task]:
    """Tasks by id."""
    return await store.list_tasks(dataset=query.dataset, split=query.split, after=query.after, limit=query.limit)
