"""What requests ask for: ids, filters, pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from coterie.store import wire
from coterie.store.filters import SpanFilter
from coterie.vocabulary import (
    JSON,
    AttemptState,
    FailureCause,
    Mode,
    ResourceKind,
    ResourceStatus,
    Reward,
    Rollout,
    RolloutState,
    RunState,
    Span,
)

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A number that every database takes."""
PageSize = Annotated[int, Field(le=wire.LARGEST_PAGE)]
Seconds = Annotated[float, Field(ge=0, le=wire.LONGEST_POLL_SECONDS)]


@dataclass(frozen=True, slots=True)
class Ids:
    """What is asked for, by id."""

    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class OfRollouts:
    """What is asked for, by rollout."""

    rollout_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class OfAttempts:
    """What is asked for, by attempt."""

    attempt_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Added:
    """What was added, or was there already."""

    ids: Sequence[str]
    """In the order of the request; the server made those that it did not name."""


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A request for work."""

    worker: str
    """Who takes it: a name for logs and for the attempts."""
    limit: PageSize = 1
    lease_seconds: float = 60.0
    """How long it is held without a heartbeat."""
    wait_seconds: Seconds = 0.0
    """How long to wait for the first one. Ask again for a longer wait."""
    run_id: str | None = None
    """Only rollouts of this run."""
    request_id: str | None = None
    """A fresh id. A request that is repeated with it, because its answer was lost, gets the same leases."""


@dataclass(frozen=True, slots=True)
class UnleaseRequest:
    """Which request for work nobody heard the answer of."""

    request_id: str


@dataclass(frozen=True, slots=True)
class BeginRequest:
    """A rollout to add and take in one step."""

    rollout: Rollout
    worker: str
    lease_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """Attempts that are still worked on."""

    attempt_ids: Sequence[str]
    lease_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """Attempts that are still this worker's; stop working on the others."""

    held: Sequence[str]


@dataclass(frozen=True, slots=True)
class FinishRequest:
    """The end of an attempt, with its last spans and rewards."""

    attempt_id: str
    state: AttemptState
    cause: FailureCause | None = None
    """Of a failed one."""
    error: str | None = None
    warnings: Sequence[str] = ()
    spans: Sequence[Span] = ()
    rewards: Sequence[Reward] = ()
    retry: bool = True
    """False: a failed one is not tried again, a cancelled one takes its rollout with it."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Rollouts to withdraw."""

    ids: Sequence[str]
    reason: str = "cancelled"


@dataclass(frozen=True, slots=True)
class RequeueRequest:
    """Dead or cancelled rollouts to try again."""

    ids: Sequence[str]
    attempts: Whole = 1


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """Rollouts whose end is waited for."""

    ids: Sequence[str]
    at_least: Whole | None = None
    """So many of them; all by default."""
    timeout_seconds: Seconds = wire.LONGEST_POLL_SECONDS
    """Then they are given as they are. Ask again for a longer wait."""


@dataclass(frozen=True, slots=True)
class EndedQuery:
    """Rollouts whose ends are to be told: those of a run, of a group, or by id, as they are when the stream begins."""

    run_id: str | None = None
    group_id: str | None = None
    id: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TasksQuery:
    """Which tasks."""

    dataset: str | None = None
    split: str | None = None
    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class RolloutsQuery:
    """Which rollouts."""

    run_id: str | None = None
    mode: Mode | None = None
    state: RolloutState | None = None
    step: Whole | None = None
    task_id: str | None = None
    group_id: str | None = None
    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page."""

    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class SpansQuery:
    """Which spans, in the order in which they arrived."""

    rollout_id: str | None = None
    trace_id: str | None = None
    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class SearchQuery(SpanFilter):
    """Conditions on spans. All that are given must hold."""

    # Those of SpanFilter, in a request only within bounds.
    started_from_ns: Whole | None = None
    started_before_ns: Whole | None = None
    text: str | None = None
    """Words that must all occur in what was said."""
    newest_first: bool = False
    after: str | None = None
    limit: PageSize = 100


@dataclass(frozen=True, slots=True)
class OfRollout:
    """Of one rollout, or of all."""

    rollout_id: str | None = None
    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class OfRun:
    """Of one run, or of all."""

    run_id: str | None = None
    after: str | None = None
    limit: PageSize = 1000


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class MetricsQuery:
    """Of which run, and of which stage if not of all."""

    run_id: str
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class RunsQuery:
    """Which runs, newest first."""

    state: RunState | None = None
    after: str | None = None
    limit: PageSize = 100


@dataclass(frozen=True, slots=True)
class ResourceQuery:
    """Which version of a resource."""

    name: str
    version: Whole | None = None
    """The active one by default."""


@dataclass(frozen=True, slots=True)
class ResourcesQuery:
    """The active version of each resource, the newest if none is; with a name or a status all versions that fit."""

    kind: ResourceKind | None = None
    name: str | None = None
    status: ResourceStatus | None = None


@dataclass(frozen=True, slots=True)
class Marking:
    """What to change of a version of a resource; what is left out stays as it is."""

    name: str
    version: Whole
    status: ResourceStatus | None = None
    scores: Mapping[str, JSON] | None = None
    """Added to those that it has."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What answers here."""

    name: str
    """``coterie``."""
    version: str
