"""The words of Coterie as types: tasks, rollouts, attempts, spans, rewards, resources, runs.

Every other module speaks in these. They are plain frozen dataclasses: no I/O, no framework. All times are
nanoseconds since the Unix epoch (UTC), as in OpenTelemetry. Ids are strings; whoever creates a record picks its
id, so that a write may be retried without doubling anything.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

JSON = Any
"""A value that ``json.dumps`` accepts."""


def new_id(prefix: str) -> str:
    """A fresh id such as ``ro-5f0c…``: readable in logs, unique without coordination."""
    return f"{prefix}-{uuid.uuid4().hex[:20]}"


def now_ns() -> int:
    """The present time in nanoseconds since the Unix epoch."""
    return time.time_ns()


class Mode(StrEnum):
    """Why a rollout is made."""

    TRAIN = "train"
    """Its calls feed a trainer; a finished attempt without a trainable call is reported loudly."""
    VAL = "val"
    """Measures a candidate while tuning."""
    TEST = "test"
    """Measures the final result; touched once."""
    PRODUCTION = "production"
    """A real request of a real user."""
    AUDIT = "audit"
    """Plays an earlier attempt again, changed, to see what made the difference. Never trained on, no success figure."""


class RolloutState(StrEnum):
    """Where a rollout stands."""

    QUEUED = "queued"
    """Waits for a worker, or for its time (``available_ns``)."""
    RUNNING = "running"
    """A worker holds an attempt at it under a lease."""
    SUCCEEDED = "succeeded"
    """An attempt ran to its end. Says nothing about the reward."""
    DEAD = "dead"
    """The dead letter: every allowed attempt failed; ``reason`` says how the last one did and which limit was hit."""
    CANCELLED = "cancelled"
    """Somebody withdrew it."""

    @property
    def terminal(self) -> bool:
        """True when it has ended: nothing changes it any more, unless somebody asks for it (``Store.requeue``)."""
        return self not in (RolloutState.QUEUED, RolloutState.RUNNING)


class AttemptState(StrEnum):
    """Where an attempt stands."""

    RUNNING = "running"
    """Its worker holds the lease."""
    SUCCEEDED = "succeeded"
    """The rollout function returned a valid reward."""
    FAILED = "failed"
    """It ended without a valid result; ``cause`` says of what kind."""
    CANCELLED = "cancelled"
    """The rollout was withdrawn while it ran."""


class FailureCause(StrEnum):
    """Why an attempt failed."""

    ERROR = "error"
    """The rollout function raised."""
    DEADLINE = "deadline"
    """It ran longer than its deadline and was ended."""
    LEASE_EXPIRED = "lease_expired"
    """Its worker stopped sending heartbeats."""
    BAD_REWARD = "bad_reward"
    """It returned something that is no finite number nor a mapping of role to finite number."""


@dataclass(frozen=True, slots=True)
class Task:
    """One input, with what is needed to judge it."""

    id: str
    input: JSON
    """What the team gets."""
    reference: JSON = None
    """What the judge needs and the team must not see: a gold answer, tests."""
    dataset: str = "default"
    split: str = "train"
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    """Free labels, such as ``family``; the report groups by them."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a failed attempt leads to. ``Rollout.max_attempts`` bounds the failures of all causes together."""

    by_cause: Mapping[FailureCause, int] = field(default_factory=dict)
    """After so many failed attempts of a cause the rollout is dead, though ``max_attempts`` would allow more."""
    delay_seconds: float = 0.0
    """How long the second attempt is put off. Each further one is put off ``backoff`` times as long as the one before."""
    backoff: float = 2.0
    max_delay_seconds: float = 300.0
    """No attempt is put off longer than this."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One request to run the team on a task."""

    task_id: str
    mode: Mode = Mode.TRAIN
    id: str = field(default_factory=lambda: new_id("ro"))
    run_id: str | None = None
    """The training or tuning run that asked for it."""
    group_id: str | None = None
    """Rollouts of one task that are compared with each other share it."""
    step: int | None = None
    """The step of the run that asked for it."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """Resource name to the version that it is pinned to from its start."""
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    """Sampling parameters that override the endpoint's, such as ``{"temperature": 0}``."""
    max_attempts: int = 1
    """After so many failed attempts it is dead. One that was given back unharmed is not failed."""
    deadline_seconds: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    available_ns: int | None = None
    """Not leased before this time: it is scheduled, or put off by its retry policy. None once it is leased."""
    state: RolloutState = RolloutState.QUEUED
    reason: str | None = None
    """Why it is dead or cancelled, in a sentence."""
    created_ns: int = field(default_factory=now_ns)
    finished_ns: int | None = None
    metadata: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a rollout by a worker, under a lease."""

    id: str
    rollout_id: str
    number: int
    """1 for the first try."""
    worker: str
    state: AttemptState
    started_ns: int
    lease_expires_ns: int
    ended_ns: int | None = None
    cause: FailureCause | None = None
    error: str | None = None
    """Type, message and last lines of the traceback."""
    warnings: Sequence[str] = ()
    """What the runner found wrong though the attempt ended well, e.g. no trainable call."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker gets when it takes work: the attempt to make, at which rollout, on which task."""

    attempt: Attempt
    rollout: Rollout
    task: Task


class SpanStatus(StrEnum):
    """The OpenTelemetry status of a span."""

    UNSET = "unset"
    """Ended normally."""
    OK = "ok"
    """Marked as good by the user."""
    ERROR = "error"
    """Ended with an error; the message says which."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """A timed event on a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """An OpenTelemetry span as the store keeps it. ``conventions.py`` names the attributes."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    name: str
    start_ns: int
    end_ns: int
    parent_id: str | None = None
    rollout_id: str | None = None
    attempt_id: str | None = None
    status: SpanStatus = SpanStatus.UNSET
    status_message: str = ""
    attributes: Mapping[str, JSON] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()


@dataclass(frozen=True, slots=True)
class Reward:
    """A named value from a named source, bound to a rollout and, if it says so, to a role, an agent path or one call.

    The narrowest binding that is given counts: ``call_id``, else ``agent_path``, else ``role``, else the whole team.
    """

    rollout_id: str
    attempt_id: str
    value: float
    name: str = "reward"
    source: str = "return"
    """Who says so: ``return`` (the rollout function's value), ``code`` (``coterie.reward``), a judge's name."""
    role: str | None = None
    agent_path: str | None = None
    call_id: str | None = None
    explanation: str | None = None
    id: str = field(default_factory=lambda: new_id("rw"))
    time_ns: int = field(default_factory=now_ns)


class ResourceKind(StrEnum):
    """What learning changes and agents read."""

    PROMPT = "prompt"
    """Text of a role: ``{"text": …, "role": …, "part": …, "placeholders": […]}``."""
    ENDPOINT = "endpoint"
    """Where and how a policy is called: an ``Endpoint`` as a mapping."""
    WEIGHTS = "weights"
    """Where a policy's weights lie: ``{"path": …}``."""
    MEMORY = "memory"
    """What a team remembers."""


class ResourceStatus(StrEnum):
    """What a version of a resource is for now. At most one version of a name is active."""

    CANDIDATE = "candidate"
    """Under trial: read only by who names the version."""
    ACTIVE = "active"
    """The one that is read when no version is named."""
    RETIRED = "retired"
    """Was active, or was tried and not taken. It can be made active again."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One version of a named resource. Versions count from 1; once published their content never changes, while
    ``status`` and ``scores`` may (``Store.mark``).
    """

    name: str
    kind: ResourceKind
    content: Mapping[str, JSON]
    version: int = 0
    """0 in a request to publish: the store gives the next number."""
    author: str = "user"
    parent: int | None = None
    """The version that it was made from."""
    note: str = ""
    """Why it was changed."""
    created_ns: int = field(default_factory=now_ns)
    status: ResourceStatus = ResourceStatus.ACTIVE
    scores: Mapping[str, JSON] = field(default_factory=dict)
    """What was measured of it, such as ``{"test": {"success": 0.8, "rollouts": 40}}``."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where calls of some roles go, and how they are sampled. The content of an ``ENDPOINT`` resource."""

    base_url: str
    """An OpenAI-compatible base, such as ``http://127.0.0.1:8000/v1``."""
    model: str
    policy: str
    """The policy behind it."""
    version: int = 0
    """The policy version that was current when it was published; each call records the version that answered."""
    roles: Sequence[str] = ()
    """The roles it serves; empty means all."""
    api_key_env: str | None = None
    """The environment variable that holds the key: secrets by reference, never by value."""
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    """Sampling parameters that replace the caller's, such as ``{"temperature": 1.0, "max_tokens": 64}``."""
    token_ids: bool = True
    """Ask the server for token ids and log-probs (vLLM's ``return_token_ids``)."""
    replicas: Sequence[str] = ()
    """The bases of all servers of the policy, where there are several; ``base_url`` is one of them."""

    def at(self, version: int) -> Endpoint:
        """The endpoint with another version of its policy; a model that is named ``policy@version`` moves with it."""
        moved = self.model == f"{self.policy}@{self.version}"
        return replace(self, version=version, model=f"{self.policy}@{version}" if moved else self.model)


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    """In progress, or cut off: its last metric tells."""
    SUCCEEDED = "succeeded"
    """Ran to its end."""
    FAILED = "failed"
    """Ended with an error."""
    STOPPED = "stopped"
    """Ended early by a person or a guard; may be resumed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training or tuning run."""

    id: str
    kind: str
    """``train`` or ``optimize``."""
    name: str
    config: Mapping[str, JSON]
    state: RunState = RunState.RUNNING
    created_ns: int = field(default_factory=now_ns)
    finished_ns: int | None = None
    summary: Mapping[str, JSON] = field(default_factory=dict)
    """The results, as the report prints them."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of one step of a run. Written once per (run, step, stage): a second write replaces the first."""

    run_id: str
    step: int
    values: Mapping[str, float | int | str | None]
    stage: str = "train"
    """``train``, ``val``, ``test``, ``baseline``, ``warm_start``, ``prompts``, ``search``, ``audit_mask``, ``audit_replay``."""
    time_ns: int = field(default_factory=now_ns)


@dataclass(frozen=True, slots=True)
class Decision:
    """An audit entry: what was published, promoted, rolled back or stopped, and on what evidence."""

    run_id: str
    kind: str
    """``published``, ``promoted``, ``kept``, ``rolled_back``, ``retired``, ``stopped``, ``audited``."""
    subject: str
    """What it is about, such as ``policy team@12``."""
    evidence: Mapping[str, JSON]
    id: str = field(default_factory=lambda: new_id("de"))
    time_ns: int = field(default_factory=now_ns)
