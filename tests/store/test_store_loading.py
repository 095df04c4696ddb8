"""Records of another store, added as they are: every one, once, and only if they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from stores_under_test import Clock, OpenStore

from coterie.errors import NotFoundError, RewardError, StoreError
from coterie.store.base import Store
from coterie.store.transfer import Records
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    Decision,
    FailureCause,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    ResourceStatus,
    RetryPolicy,
    Reward,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Span,
    Task,
)

SECOND = 1_000_000_000
CANDIDATE = ResourceStatus.CANDIDATE
TASK = Task("t", {"question": "?"}, "answer", "spider", "test", {"family": "joins"})
DEAD = Rollout(
    "t",
    Mode.VAL,
    id="ro-dead",
    run_id="r",
    group_id="g",
    step=4,
    resources={"coder": 3},
    max_attempts=2,
    retry=RetryPolicy({FailureCause.DEADLINE: 1}, 2.0),
    state=RolloutState.DEAD,
    reason="Attempt 1 ran longer than its deadline.",
    created_ns=5,
    finished_ns=9,
    metadata={"seed": 1},
)
FAILED = Attempt(
    "at-dead",
    "ro-dead",
    1,
    "w",
    AttemptState.FAILED,
    6,
    8,
    9,
    FailureCause.DEADLINE,
    "TimeoutError: 2 s",
    ("no trainable call",),
)
RUNNING = Rollout("t", id="ro-running", state=RolloutState.RUNNING, created_ns=5)
HELD = Attempt("at-running", "ro-running", 1, "w", AttemptState.RUNNING, 6, 6 + 10 * SECOND)
QUEUED = Rollout("t", id="ro-queued", created_ns=5, available_ns=10**15)
EVERYTHING = Records(
    tasks=[TASK],
    resources=[Resource("coder", ResourceKind.PROMPT, {"text": "x"}, 3, "gepa", 2, "note", 7, CANDIDATE, {"val": 0.5})],
    runs=[Run("r", "train", "name", {"lr": 1}, RunState.FAILED, 1, 2, {"why": "x"})],
    metrics=[Metrics("r", 1, {"loss": 0.5}, "val", 3)],
    decisions=[Decision("r", "stopped", "policy team@2", {"kl": 3}, "de-1", 4)],
    rollouts=[DEAD, RUNNING, QUEUED],
    attempts=[FAILED, HELD],
    spans=[Span("a" * 32, "b" * 16, "chat", 1, 2, rollout_id="ro-dead", attempt_id="at-dead")],
    rewards=[Reward("ro-dead", "at-dead", 0.5, "correct", "judge", "coder", id="rw-1", time_ns=8)],
)


async def kept(store: Store) -> Records:
    """All that a store has."""
    return Records(
        tasks=(await store.list_tasks()).items,
        resources=await store.list_resources(name="coder"),
        runs=(await store.list_runs()).items,
        metrics=await store.get_metrics("r"),
        decisions=(await store.list_decisions()).items,
        rollouts=(await store.list_rollouts()).items,
        attempts=(await store.list_attempts()).items,
        spans=(await store.list_spans()).items,
        rewards=(await store.list_rewards()).items,
    )


def as_lists(records: Records) -> dict[str, list[Any]]:
    return {each.name: list(getattr(records, each.name)) for each in fields(Records)}


@pytest.fixture
async def early_store(open_store: OpenStore) -> Store:
    """A store whose clock shows the time at which the records were made."""
    return await open_store(clock=Clock(7))


async def test_everything_is_loaded_as_it_was(early_store: Store) -> None:
    await early_store.load(EVERYTHING)
    assert as_lists(await kept(early_store)) == as_lists(EVERYTHING)


async def test_loading_again_changes_nothing(early_store: Store) -> None:
    await early_store.load(EVERYTHING)
    lease = (await early_store.get_attempts(["ro-running"]))["ro-running"][0]
    await early_store.finish(lease.id, AttemptState.SUCCEEDED)
    await early_store.add_tasks([replace(TASK, input="changed here")])
    before = await kept(early_store)
    await early_store.load(EVERYTHING)
    assert as_lists(await kept(early_store)) == as_lists(before)


async def test_what_is_there_stays_as_it_is(early_store: Store) -> None:
    await early_store.add_tasks([replace(TASK, input="mine")])
    mine = Rollout("t", id="ro-queued", max_attempts=7)
    await early_store.enqueue([mine])
    await early_store.load(EVERYTHING)
    assert [task.input for task in await early_store.get_tasks(["t"])] == ["mine"]
    assert list(await early_store.get_rollouts(["ro-queued"])) == [mine]


async def test_versions_go_on_from_those_that_were_loaded(store: Store) -> None:
    await store.load(EVERYTHING)
    assert (await store.publish(Resource("coder", ResourceKind.PROMPT, {"text": "y"}))).version == 4


async def test_the_lease_goes_on_and_runs_out_here(open_store: OpenStore) -> None:
    clock = Clock(7)
    store = await open_store(clock=clock)
    await store.load(EVERYTHING)
    assert list(await store.lease("next")) == []
    assert await store.heartbeat(["at-running"], lease_seconds=10) == {"at-running"}
    clock.advance(11)
    assert list(await store.lease("next")) == []
    (dead,) = await store.get_rollouts(["ro-running"])
    assert dead.state is RolloutState.DEAD


async def test_queued_work_can_be_done(open_store: OpenStore) -> None:
    clock = Clock(7)
    store = await open_store(clock=clock)
    await store.load(EVERYTHING)
    assert list(await store.lease("w")) == []
    clock.now = 10**15
    (lease,) = await store.lease("w")
    assert lease.rollout.id == "ro-queued"
    await store.requeue(["ro-dead"])
    (again,) = await store.lease("w")
    assert (again.rollout.id, again.attempt.number) == ("ro-dead", 2)


WITHOUT: Sequence[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("a task", {"tasks": []}, NotFoundError, "task 't'"),
    ("a rollout", {"rollouts": [RUNNING, QUEUED]}, NotFoundError, "rollout 'ro-dead'"),
    ("an attempt", {"attempts": [HELD]}, NotFoundError, "at-dead"),
    ("the running attempt", {"attempts": [FAILED]}, StoreError, "together with its running attempt"),
    (
        "a rollout that runs",
        {"rollouts": [DEAD, QUEUED, replace(RUNNING, state=RolloutState.CANCELLED)]},
        StoreError,
        "ro-running",
    ),
    ("a version", {"resources": [Resource("coder", ResourceKind.PROMPT, {})]}, StoreError, "version"),
    (
        "one kind",
        {"resources": [*EVERYTHING.resources, Resource("coder", ResourceKind.MEMORY, {}, 4)]},
        StoreError,
        "kind",
    ),
    ("a number", {"rewards": [Reward("ro-dead", "at-dead", float("nan"))]}, RewardError, "finite"),
    ("its own attempt", {"rewards": [Reward("ro-queued", "at-dead", 1.0)]}, NotFoundError, "at-dead"),
    (
        "its own number",
        {"attempts": [FAILED, HELD, replace(FAILED, id="at-other")]},
        StoreError,
        "at-other.*another attempt of that number",
    ),
]


@pytest.mark.parametrize(("_what", "changes", "error", "says"), WITHOUT, ids=[entry[0] for entry in WITHOUT])
async def test_what_does_not_fit_together_is_refused_as_a_whole(
    store: Store, _what: str, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await store.load(replace(EVERYTHING, **changes))
    assert as_lists(await kept(store)) == as_lists(Records())


async def test_listings_give_everything_once_a_page_at_a_time(early_store: Store) -> None:
    attempts = [
        replace(FAILED, id=f"at-{number:02}", number=number + 2, cause=FailureCause.ERROR) for number in range(11)
    ]
    rewards = [replace(EVERYTHING.rewards[0], id=f"rw-{9 - number}x", attempt_id="at-05") for number in range(9)]
    decisions = [Decision(f"r{number % 2}", "kind", "s", {}, f"de-{9 - number}") for number in range(9)]
    records = replace(EVERYTHING, attempts=[*EVERYTHING.attempts, *attempts], rewards=rewards, decisions=decisions)
    await early_store.load(records)

    async def ids(listing: Any, **options: Any) -> list[str]:
        found: list[str] = []
        after: str | None = None
        for _ in range(9):
            page = await listing(after=after, limit=4, **options)
            assert len(page.items) <= 4
            found += [item.id for item in page.items]
            after = page.cursor
            if after is None:
                return found
        raise AssertionError("no end")

    assert await ids(early_store.list_attempts) == sorted(attempt.id for attempt in records.attempts)
    assert await ids(early_store.list_rewards) == [reward.id for reward in rewards]
    assert await ids(early_store.list_rewards, rollout_id="ro-dead") == [reward.id for reward in rewards]
    assert await ids(early_store.list_rewards, rollout_id="none") == []
    assert await ids(early_store.list_decisions) == [decision.id for decision in decisions]
    assert await ids(early_store.list_decisions, run_id="r1") == [d.id for d in decisions if d.run_id == "r1"]
