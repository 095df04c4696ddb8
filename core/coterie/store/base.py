"""The store's interface: what every implementation keeps and promises.

Promises:

- **Acknowledged means on disk.** When a write returns, a crash of process or machine does not lose it.
- **Idempotent by id.** A write that is repeated with the same ids changes nothing, so a retry is safe.
- **All or nothing.** A call that raises has changed nothing.
- **Nobody polls.** Waiting is by notification. (A SQLite file that several processes share has none: who waits in the
  process that made the change is woken at once, the others see it within 50 ms.)
- **Cursors, not offsets.** A listing gives a page and the cursor of the next; the work is bounded by ``limit``.

Leases run out, and what was put off becomes available, by the store's clock, which shows the time of day and may be
set. When it is found to have gone back, each lease that seems to begin in the future is counted anew from the present
time, in full, and so is each delay by a retry policy: nothing is lost by it, and nothing is held for ever. When it
leaps forward, leases run out early: their workers learn it at the next heartbeat, and the attempts count as failed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from coterie.errors import ConfigError
from coterie.store.filters import SpanFilter
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
)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a listing, in order, and where the next page starts."""

    items: Sequence[Item]
    cursor: str | None
    """Pass it as ``after`` for the next page; None at the end."""


def attempt_id_of(request_id: str, number: int) -> str:
    """The id of the attempt that a call of ``Store.lease`` with this request id made as its ``number``-th, from 0."""
    return f"at-{request_id}-{number}"


def checked_lease(lease_seconds: float) -> float:
    """How long a lease is held, in seconds, if it can be held so long.

    Raises:
        ConfigError: it is no positive number.
    """
    if not (math.isfinite(lease_seconds) and lease_seconds > 0):
        raise ConfigError(f"lease_seconds is {lease_seconds}; give a positive number of seconds.")
    return lease_seconds


class Store(ABC):
    r"""Tasks, rollouts, attempts, spans, rewards, resources, runs. All methods are safe under concurrency.

    Values come back as they went in, up to JSON: a tuple inside a JSON value comes back as a list, and a float that is
    not finite as the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``. In a text that is no JSON, what not every
    database can keep becomes readable, such as the character NUL ``\x00``; in an id it is refused. Every method raises
    ``StoreError`` when it is given what cannot be stored or when the store is closed, and ``StoreUnavailableError``
    when the database fails.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Finish pending writes and release the database. A second call does nothing."""

    @abstractmethod
    async def check(self) -> None:
        """Return if the store can be read and written now. Cheap: meant to be asked every few seconds.

        Raises:
            StoreUnavailableError: it cannot; says why.
        """

    # Tasks

    @abstractmethod
    async def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Add tasks; one whose id exists already is replaced."""

    @abstractmethod
    async def get_tasks(self, ids: Sequence[str]) -> Sequence[Task]:
        """The tasks of these ids, in this order.

        Raises:
            NotFoundError: names the ids that are missing.
        """

    @abstractmethod
    async def list_tasks(
        self, *, dataset: str | None = None, split: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Task]:
        """Tasks by id."""

    # Rollouts and attempts

    @abstractmethod
    async def enqueue(self, rollouts: Sequence[Rollout]) -> None:
        """Queue rollouts, in state ``queued``. One whose id exists already is left as it is.

        Raises:
            NotFoundError: a task or a pinned resource version does not exist; nothing was queued.
            StoreError: a limit, a deadline or the retry policy makes no sense; nothing was queued.
        """

    @abstractmethod
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
        """Take up to ``limit`` queued rollouts, oldest first, each with a new attempt.

        Those that are not available yet (``available_ns``) are passed over. Waits up to ``wait_seconds`` for the first
        one. Leases that ran out count as failed attempts first, so what they held may be taken at once. With ``run_id``
        only rollouts of that run are taken. A call that is cancelled takes nothing.

        A call that is repeated with the same ``request_id``, a fresh one for each call, gives the same leases, as far
        as they are still held; if all were taken back, it takes anew. The ids of the attempts are made of it
        (``attempt_id_of``).
        """

    @abstractmethod
    async def begin(self, rollout: Rollout, worker: str, *, lease_seconds: float = 60.0) -> Lease:
        """Add a rollout and take it in one step: it never waits in the queue, so no other worker gets it. For work that
        its own program does; ``available_ns`` does not matter. A repetition gives the same lease while its attempt runs.

        Raises:
            NotFoundError: its task or a pinned resource version does not exist; nothing was added.
            StoreError: a rollout of this id exists and is not this worker's.
        """

    @abstractmethod
    async def heartbeat(self, attempt_ids: Sequence[str], *, lease_seconds: float = 60.0) -> Collection[str]:
        """Prolong leases. Gives the ids that are still held; the others were lost or cancelled: stop working on them."""

    @abstractmethod
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
        """End an attempt, with its last spans and rewards in the same transaction.

        A failed attempt sends its rollout back to the queue while its limits (``max_attempts``, and for this cause
        ``retry.by_cause``) allow another one and ``retry`` holds; it is available again after the delay of its retry
        policy. Else it is dead, with a reason that says which limit was hit. A cancelled attempt was given back
        unharmed: its rollout goes back to the queue and the attempt does not count, or with ``retry=False`` the rollout
        is cancelled too. Repeating the same end (state and cause) changes nothing.

        Raises:
            NotFoundError: no such attempt.
            LeaseLostError: the attempt had ended otherwise or its lease was given to another worker. Its spans are
                kept all the same.
        """

    @abstractmethod
    async def cancel(self, rollout_ids: Sequence[str], *, reason: str = "cancelled") -> None:
        """Withdraw rollouts that have not ended; running attempts learn it at their next heartbeat.

        Raises:
            NotFoundError: names the ids that are missing; nothing was withdrawn.
        """

    @abstractmethod
    async def requeue(self, rollout_ids: Sequence[str], *, attempts: int = 1) -> None:
        """Put dead or cancelled rollouts back into the queue, available now, with so many more attempts.

        ``max_attempts`` becomes the number of attempts that failed so far plus ``attempts``; a limit by cause that was
        reached is raised alike. One that is in the queue or running already is left as it is, so a repetition is safe.

        Raises:
            NotFoundError: names the ids that are missing; nothing was changed.
            StoreError: one has succeeded, or ``attempts`` is below 1; nothing was changed.
        """

    @abstractmethod
    async def delete_rollouts(self, rollout_ids: Sequence[str]) -> None:
        """Remove ended rollouts with their attempts, spans and rewards. Unknown ids are no error.

        Raises:
            StoreError: names those that have not ended; nothing was removed. Cancel them first.
        """

    @abstractmethod
    async def get_rollouts(self, ids: Sequence[str]) -> Sequence[Rollout]:
        """The rollouts of these ids, in this order.

        Raises:
            NotFoundError: names the ids that are missing.
        """

    @abstractmethod
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
        """Rollouts in the order in which they were queued."""

    @abstractmethod
    async def wait(
        self, rollout_ids: Sequence[str], *, at_least: int | None = None, timeout_seconds: float | None = None
    ) -> Sequence[Rollout]:
        """Wait until at least so many of these (all by default) have ended, or until the time is up; gives them all as
        they then are. An id that is given twice counts once. ``completed_groups`` in ``groups.py`` is built on it.

        Raises:
            NotFoundError: names the ids that are missing, at once, or as soon as one is removed meanwhile.
            StoreError: ``at_least`` is below 0 or more than there are ids.
        """

    @abstractmethod
    async def get_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Sequence[Attempt]]:
        """The attempts of each rollout, first to last; none for an id that is unknown."""

    @abstractmethod
    async def list_attempts(self, *, after: str | None = None, limit: int = 1000) -> Page[Attempt]:
        """All attempts, by id."""

    # Spans and rewards

    @abstractmethod
    async def add_spans(self, spans: Sequence[Span]) -> None:
        """Add spans; one whose (trace id, span id) exists already is left as it is."""

    @abstractmethod
    async def get_spans(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Span]]:
        """All spans of each attempt, by start time."""

    @abstractmethod
    async def list_spans(
        self, *, rollout_id: str | None = None, trace_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Span]:
        """Spans in the order in which they arrived."""

    @abstractmethod
    async def search_spans(
        self, where: SpanFilter, *, newest_first: bool = False, after: str | None = None, limit: int = 100
    ) -> Page[Span]:
        """Spans that fit, in the order in which they arrived, or the other way round. A page holds up to ``limit``.

        Raises:
            StoreError: ``limit`` is below 1, or ``after`` is no cursor of the same search.
        """

    @abstractmethod
    async def delete_traces(self, trace_ids: Sequence[str]) -> None:
        """Remove the spans of these traces that belong to no rollout of this store; the others go with their rollout
        (``delete_rollouts``). Unknown ids are no error.
        """

    @abstractmethod
    async def add_rewards(self, rewards: Sequence[Reward]) -> None:
        """Add rewards.

        Raises:
            RewardError: a value is not finite.
            NotFoundError: a rollout or attempt does not exist.
        """

    @abstractmethod
    async def get_rewards(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Reward]]:
        """All rewards of each attempt, in order of time."""

    @abstractmethod
    async def list_rewards(
        self, *, rollout_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Reward]:
        """Rewards in the order in which they arrived."""

    # Resources

    @abstractmethod
    async def publish(self, resource: Resource) -> Resource:
        """Add the next version of a named resource and return it with its version.

        With status ``ACTIVE``, which it has by default, it takes the place of the version that was active until now,
        which is retired in the same transaction; with another status it touches no other version.

        A version other than 0 must be the next one, or one that was published already with the same content: that
        one is left, and returned, as it is by now.

        Raises:
            StoreError: it is neither, or the name belongs to a resource of another kind.
        """

    @abstractmethod
    async def mark(
        self,
        name: str,
        version: int,
        status: ResourceStatus | None = None,
        *,
        scores: Mapping[str, JSON] | None = None,
    ) -> Resource:
        """Give a version another status, or scores, and return it as it is then. What is None stays as it was.

        Scores are added to those that it has; one of the same name is replaced. Making a version ``ACTIVE`` retires
        the one that was active, in the same transaction. A repetition changes nothing.

        Raises:
            NotFoundError: no such name or version; the message lists what there is.
            StoreError: the scores are no JSON. Nothing was changed.
        """

    @abstractmethod
    async def get_resource(self, name: str, version: int | None = None) -> Resource:
        """A version of a resource, the active one by default.

        Raises:
            NotFoundError: no such name or version, or none is active; the message lists what there is.
        """

    @abstractmethod
    async def list_resources(
        self, *, kind: ResourceKind | None = None, name: str | None = None, status: ResourceStatus | None = None
    ) -> Sequence[Resource]:
        """One version of each resource, by name: the active one, or the newest if none is active.

        With ``name`` all versions of that one, oldest first; with ``status`` all versions that have it.
        """

    # Runs

    @abstractmethod
    async def save_run(self, run: Run) -> None:
        """Add a run or replace the one of this id."""

    @abstractmethod
    async def get_run(self, run_id: str) -> Run:
        """Raises: NotFoundError: no such run; the message lists the newest ones."""

    @abstractmethod
    async def list_runs(
        self, *, state: RunState | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Run]:
        """Runs, newest first."""

    @abstractmethod
    async def add_metrics(self, metrics: Sequence[Metrics]) -> None:
        """Add figures of steps; the same (run, step, stage) is replaced."""

    @abstractmethod
    async def get_metrics(self, run_id: str, *, stage: str | None = None) -> Sequence[Metrics]:
        """A run's figures by step."""

    @abstractmethod
    async def add_decision(self, decision: Decision) -> None:
        """Add an audit entry."""

    @abstractmethod
    async def get_decisions(self, run_id: str) -> Sequence[Decision]:
        """A run's audit entries in order of time."""

    @abstractmethod
    async def list_decisions(
        self, *, run_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> Page[Decision]:
        """Audit entries in the order in which they arrived."""

    # The store as a whole

    @abstractmethod
    async def load(self, records: Records) -> None:
        """Add records as they are, with their states and versions, in one transaction. What exists already (by id, or
        by name and version, or by run, step and stage) is left as it is, so a repetition is safe. Where a resource has
        several active versions afterwards, the highest stays active.

        A rollout that runs must come together with its running attempt: the lease goes on here, and runs out here.

        Raises:
            NotFoundError: a record belongs to a task, rollout or attempt that neither the records nor the store have.
            RewardError: a reward is no finite number.
            StoreError: records contradict each other or the store, such as a running attempt at a rollout that has
                ended. Nothing was added.
        """

    @abstractmethod
    async def prune(self, retention: Retention) -> Pruned:
        """Remove what a retention no longer keeps, oldest end first, and give its space back to the disk.

        It works in small transactions, so that others can write in between, and may be repeated: when it is cut off,
        what was removed is removed, each rollout with all that belongs to it or not at all. What has not ended stays,
        so the store can remain larger than ``max_bytes``.
        """

    @abstractmethod
    async def statistics(self) -> Mapping[str, JSON]:
        """The number of ``tasks``, ``rollouts``, ``attempts``, ``spans`` and so on, ``rollouts_by_state``, and ``bytes``
        on disk.
        """
