"""The store's interface: what every implementation keeps and promises.

Promises:

- **Acknowledged means on disk.** When a write returns, a crash of process or machine does not lose it.
- **Idempotent by id.** A write that is repeated with the same ids changes nothing, so a retry is safe.
- **All or nothing.** A call that raises has changed nothing.
- **Nobody polls.** Waiting is by notification. (A SQLite file that several processes share has none: who waits in the
  process that made the change is woken at once, the others see it within 50 ms.)
- **Cursors, not offsets.** A listing gives a page and the cursor of the next; the work is bounded by ``limit``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

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


class Store(ABC):
    """Tasks, rollouts, attempts, spans, rewards, resources, runs. All methods are safe under concurrency.

    Values come back as they went in, up to JSON: a tuple inside a JSON value comes back as a list, and a float that is
    not finite as the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``. Every method raises ``StoreError`` when it is
    given what cannot be stored or when the store is closed, and ``StoreUnavailableError`` when the database fails.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Finish pending writes and release the database. A second call does nothing."""

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

        Waits up to ``wait_seconds`` for the first one. Leases that ran out are returned to the queue first (or, with
        no attempt left, declared dead). With ``run_id`` only rollouts of that run are taken. A call that is cancelled
        takes nothing. A call that is repeated with the same ``request_id``, a fresh one for each call, gives the same
        leases, as far as they are still held: the ids of their attempts are made of it (``attempt_id_of``).
        """

    @abstractmethod
    async def begin(self, rollout: Rollout, worker: str, *, lease_seconds: float = 60.0) -> Lease:
        """Add a rollout and take it in one step: it never waits in the queue, so no other worker gets it. For work that
        its own program does. A repetition gives the same lease while its attempt runs.

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

        A failed attempt sends its rollout back to the queue while attempts are left and ``retry`` holds, else it is
        dead with a reason. A cancelled attempt was given back unharmed: its rollout goes back to the queue and the
        attempt does not count, or with ``retry=False`` the rollout is cancelled too. Repeating the same end (state
        and cause) changes nothing.

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
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[Rollout]:
        """Rollouts in the order in which they were queued."""

    @abstractmethod
    async def wait(self, rollout_ids: Sequence[str], *, timeout_seconds: float | None = None) -> Sequence[Rollout]:
        """Wait until all of these have ended, or until the time is up; gives them all as they then are.

        Raises:
            NotFoundError: names the ids that are missing, at once.
        """

    @abstractmethod
    async def get_attempts(self, rollout_ids: Sequence[str]) -> Mapping[str, Sequence[Attempt]]:
        """The attempts of each rollout, first to last; none for an id that is unknown."""

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
    async def add_rewards(self, rewards: Sequence[Reward]) -> None:
        """Add rewards.

        Raises:
            RewardError: a value is not finite.
            NotFoundError: a rollout or attempt does not exist.
        """

    @abstractmethod
    async def get_rewards(self, attempt_ids: Sequence[str]) -> Mapping[str, Sequence[Reward]]:
        """All rewards of each attempt, in order of time."""

    # Resources

    @abstractmethod
    async def publish(self, resource: Resource) -> Resource:
        """Add the next version of a named resource and return it with its version.

        A version other than 0 must be the next one, or one that was published already with the same content.

        Raises:
            StoreError: it is neither, or the name belongs to a resource of another kind.
        """

    @abstractmethod
    async def get_resource(self, name: str, version: int | None = None) -> Resource:
        """A version of a resource, the latest by default.

        Raises:
            NotFoundError: no such name or version; the message lists what there is.
        """

    @abstractmethod
    async def list_resources(self, *, kind: ResourceKind | None = None, name: str | None = None) -> Sequence[Resource]:
        """The latest version of each resource; with ``name`` all versions of that one, oldest first."""

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
    async def statistics(self) -> Mapping[str, JSON]:
        """The number of ``tasks``, ``rollouts``, ``attempts``, ``spans`` and so on, ``rollouts_by_state``, and ``bytes``
        on disk.
        """
