"""The runner in one process against a real store file: what becomes of each attempt."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import coterie
from coterie.capture.switch import instrumented
from coterie.conventions import EVALUATION_EVENT, EVALUATION_VALUE, INVOKE_WORKFLOW, OPERATION, REWARD_ROLE
from coterie.errors import ConfigError, StoreUnavailableError
from coterie.roles import acting_as
from coterie.runner import Runner, RunnerStatistics
from coterie.scope import current_scope
from coterie.spans import tracer
from coterie.store.base import Store
from coterie.vocabulary import (
    Attempt,
    AttemptState,
    FailureCause,
    Mode,
    Resource,
    ResourceKind,
    Rollout,
    RolloutState,
    SpanStatus,
)


async def played(
    store: Store, function: Callable[..., Any], rollout: Rollout | None = None, **options: Any
) -> tuple[Rollout, Attempt, RunnerStatistics]:
    """The rollout after a runner ended it, its last attempt, and what the runner counted."""
    rollout = rollout or Rollout("t1", mode=Mode.VAL)
    async with Runner(store, coterie.rollout(function), **options) as runner:
        await store.enqueue([rollout])
        (ended,) = await store.wait([rollout.id], timeout_seconds=30)
        await runner.drain()
    return ended, (await store.get_attempts([rollout.id]))[rollout.id][-1], runner.statistics


async def test_a_rollout_is_played_with_its_task_and_its_reward_is_kept(store: Store) -> None:
    async def team(task, mode, endpoint, prompts):
        assert (task.reference, mode, endpoint, prompts) == (7, Mode.VAL, None, {})
        coterie.reward(0.5, role="coder", name="style")
        return {"team": True, "coder": 0.25}

    with tracer().start_as_current_span("what the runner's caller traces"):
        rollout, attempt, statistics = await played(store, team, worker="w1")
    assert rollout.state is RolloutState.SUCCEEDED
    assert (attempt.state, attempt.worker, attempt.error) == (AttemptState.SUCCEEDED, "w1", None)
    rewards = (await store.get_rewards([attempt.id]))[attempt.id]
    assert {(reward.role, reward.name, reward.value, reward.source) for reward in rewards} == {
        ("coder", "style", 0.5, "code"),
        (None, "reward", 1.0, "return"),
        ("coder", "reward", 0.25, "return"),
    }
    (root,) = (await store.get_spans([attempt.id]))[attempt.id]
    assert (root.name, root.parent_id, root.rollout_id) == ("team", None, rollout.id)
    assert root.attributes[OPERATION] == INVOKE_WORKFLOW
    assert [(event.attributes.get(REWARD_ROLE), event.attributes[EVALUATION_VALUE]) for event in root.events] == [
        ("coder", 0.5),
        (None, 1.0),
        ("coder", 0.25),
    ]
    assert {event.name for event in root.events} == {EVALUATION_EVENT}
    assert statistics == RunnerStatistics(leased=1, succeeded=1)


async def test_sync_functions_run_side_by_side_with_their_own_scope(store: Store) -> None:
    together = threading.Barrier(8, timeout=20)

    def team(task):
        together.wait()
        coterie.reward(1.0, role="coder")

    rollouts = [Rollout("t1", mode=Mode.VAL) for _ in range(8)]
    async with Runner(store, coterie.rollout(team), concurrency=8):
        await store.enqueue(rollouts)
        ended = await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
    assert {rollout.state for rollout in ended} == {RolloutState.SUCCEEDED}
    for attempts in (await store.get_attempts([rollout.id for rollout in rollouts])).values():
        assert len((await store.get_rewards([attempts[0].id]))[attempts[0].id]) == 1


async def test_never_more_than_concurrency(store: Store) -> None:
    now = most = 0

    async def team(task):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return 1.0

    rollouts = [Rollout("t1", mode=Mode.VAL) for _ in range(20)]
    async with Runner(store, coterie.rollout(team), concurrency=3):
        await store.enqueue(rollouts)
        await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
    assert most == 3


def plain_function_that_wraps_an_async_one(task):
    async def team():
        await asyncio.sleep(0)
        return 0.5

    return team()


async def test_a_plain_function_may_return_a_coroutine(store: Store) -> None:
    rollout, attempt, _ = await played(store, plain_function_that_wraps_an_async_one)
    assert rollout.state is RolloutState.SUCCEEDED
    assert (await store.get_rewards([attempt.id]))[attempt.id][0].value == 0.5


async def raises(task):
    try:
        {}["no such key"]
    except KeyError as error:
        raise ValueError("the agents disagree") from error


def raises_in_a_thread(task):
    raise ValueError("the agents disagree")


async def exits(task):
    raise SystemExit("bye")


def exits_in_a_thread(task):
    raise SystemExit("bye")


async def cancels_itself(task):
    raise asyncio.CancelledError


async def gives_nan(task):
    return float("nan")


def gives_text(task):
    return "good"


async def gives_nothing(task):
    return None


async def rewards_nan(task):
    coterie.reward(float("nan"))
    return 1.0


@pytest.mark.parametrize(
    ("function", "cause", "says"),
    [
        (raises, FailureCause.ERROR, "ValueError: the agents disagree\ncaused by KeyError: 'no such key'\n"),
        (raises_in_a_thread, FailureCause.ERROR, "ValueError: the agents disagree\n"),
        (exits, FailureCause.ERROR, "SystemExit: bye"),
        (exits_in_a_thread, FailureCause.ERROR, "SystemExit: bye"),
        (cancels_itself, FailureCause.ERROR, "CancelledError"),
        (gives_nan, FailureCause.BAD_REWARD, "nan (float), which is no finite number"),
        (gives_text, FailureCause.BAD_REWARD, "'good' (str), which is no finite number"),
        (gives_nothing, FailureCause.BAD_REWARD, "Is a 'return' missing?"),
        (rewards_nan, FailureCause.BAD_REWARD, "coterie.reward('reward') is nan"),
    ],
)
async def test_a_function_that_fails(store: Store, function: Any, cause: FailureCause, says: str) -> None:
    rollout, attempt, statistics = await played(store, function)
    assert rollout.state is RolloutState.DEAD
    assert (attempt.state, attempt.cause) == (AttemptState.FAILED, cause)
    assert attempt.error is not None
    assert says in attempt.error
    if function in (raises, raises_in_a_thread):
        assert 'raise ValueError("the agents disagree")' in attempt.error
        assert "coterie/runner" not in attempt.error
    (root,) = (await store.get_spans([attempt.id]))[attempt.id]
    assert root.status is SpanStatus.ERROR
    assert not (await store.get_rewards([attempt.id]))[attempt.id]
    assert (statistics.failed, statistics.succeeded) == (1, 0)


async def test_a_failed_attempt_is_tried_again(store: Store) -> None:
    tries = 0

    async def team(task):
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("reset")
        return 1.0

    rollout, attempt, statistics = await played(store, team, Rollout("t1", mode=Mode.VAL, max_attempts=3))
    assert rollout.state is RolloutState.SUCCEEDED
    assert attempt.number == 3
    assert (statistics.leased, statistics.failed, statistics.succeeded) == (3, 2, 1)


async def test_the_deadline_cancels_an_async_function(store: Store) -> None:
    cleaned_up = False

    async def team(task):
        nonlocal cleaned_up
        coterie.reward(0.5, name="partial")
        try:
            await asyncio.sleep(60)
        finally:
            cleaned_up = True

    began = time.monotonic()
    rollout, attempt, statistics = await played(store, team, deadline_seconds=0.2)
    assert time.monotonic() - began < 10
    assert cleaned_up
    assert rollout.state is RolloutState.DEAD
    assert (attempt.state, attempt.cause) == (AttemptState.FAILED, FailureCause.DEADLINE)
    assert attempt.error == "It ran longer than its deadline of 0.2 s and was cancelled."
    assert (await store.get_rewards([attempt.id]))[attempt.id][0].name == "partial"
    assert (statistics.deadline, statistics.abandoned) == (1, 0)


async def test_a_rollouts_own_deadline_counts(store: Store) -> None:
    async def team(task):
        await asyncio.sleep(60)

    _, attempt, _ = await played(store, team, Rollout("t1", mode=Mode.VAL, deadline_seconds=0.1), deadline_seconds=50)
    assert attempt.cause is FailureCause.DEADLINE


async def test_a_task_that_swallows_its_cancellation_is_abandoned_and_reported(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def team(task):
        while not release.is_set():
            try:
                await asyncio.wait_for(release.wait(), 60)
            except asyncio.CancelledError:
                coterie.reward(1.0, name="too_late")

    _, attempt, statistics = await played(store, team, deadline_seconds=0.1, grace_seconds=0.1)
    assert attempt.cause is FailureCause.DEADLINE
    assert "swallowed its cancellation" in attempt.warnings[0]
    assert "swallowed its cancellation" in caplog.text
    assert statistics.abandoned == 1
    release.set()
    await asyncio.sleep(0.05)


async def test_a_sync_function_is_abandoned_at_its_deadline(store: Store) -> None:
    release = threading.Event()
    late: list[str] = []

    def team(task):
        release.wait(30)
        coterie.reward(1.0)
        late.append("done")
        return 1.0

    _, attempt, statistics = await played(store, team, deadline_seconds=0.1)
    assert attempt.cause is FailureCause.DEADLINE
    assert "its thread goes on" in attempt.warnings[0]
    assert statistics.abandoned == 1
    release.set()
    for _ in range(200):
        if late:
            break
        await asyncio.sleep(0.01)
    assert late
    assert not (await store.get_rewards([attempt.id]))[attempt.id]


async def test_a_cancelled_rollout_ends_at_the_next_heartbeat(store: Store) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def team(task):
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    rollout = Rollout("t1", mode=Mode.VAL, max_attempts=3)
    async with Runner(store, coterie.rollout(team), lease_seconds=0.6) as runner:
        await store.enqueue([rollout])
        await asyncio.wait_for(began.wait(), 10)
        await store.cancel([rollout.id], reason="changed my mind")
        await asyncio.wait_for(ended.wait(), 10)
        await runner.drain()
    (after,) = await store.get_rollouts([rollout.id])
    (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
    assert (after.state, after.reason) == (RolloutState.CANCELLED, "changed my mind")
    assert attempt.state is AttemptState.CANCELLED
    assert len((await store.get_spans([attempt.id]))[attempt.id]) == 1


async def test_heartbeats_keep_a_long_attempt(store: Store) -> None:
    async def team(task):
        await asyncio.sleep(1.5)
        return 1.0

    rollout = Rollout("t1", mode=Mode.VAL, max_attempts=5)
    function = coterie.rollout(team)
    async with Runner(store, function, lease_seconds=0.5), Runner(store, function, lease_seconds=0.5):
        await store.enqueue([rollout])
        (after,) = await store.wait([rollout.id], timeout_seconds=30)
    assert after.state is RolloutState.SUCCEEDED
    assert len((await store.get_attempts([rollout.id]))[rollout.id]) == 1


async def test_a_stopped_runner_gives_its_work_back(store: Store) -> None:
    began = asyncio.Event()

    async def slow(task):
        began.set()
        await asyncio.sleep(60)

    async def quick(task):
        return 1.0

    rollout = Rollout("t1", mode=Mode.VAL)
    async with Runner(store, coterie.rollout(slow)) as runner:
        await store.enqueue([rollout])
        await asyncio.wait_for(began.wait(), 10)
    assert runner.statistics.cancelled == 1
    async with Runner(store, coterie.rollout(quick)):
        (after,) = await store.wait([rollout.id], timeout_seconds=30)
    assert after.state is RolloutState.SUCCEEDED


async def test_drain_lets_running_attempts_end_and_takes_no_more(store: Store) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def team(task):
        began.set()
        await go.wait()
        return 1.0

    rollouts = [Rollout("t1", mode=Mode.VAL) for _ in range(3)]
    async with Runner(store, coterie.rollout(team), concurrency=1) as runner:
        await store.enqueue(rollouts)
        await asyncio.wait_for(began.wait(), 10)
        asyncio.get_running_loop().call_later(0.1, go.set)
        await asyncio.wait_for(runner.drain(), 10)
        states = [rollout.state for rollout in await store.get_rollouts([rollout.id for rollout in rollouts])]
    assert states == [RolloutState.SUCCEEDED, RolloutState.QUEUED, RolloutState.QUEUED]


async def test_pinned_resources_reach_the_function_and_are_exact(store: Store) -> None:
    seen = []

    async def team(endpoint, endpoints, prompts):
        seen.append((endpoint.model, sorted(endpoints), dict(prompts)))
        return 1.0

    for version in (1, 2):
        content = {"base_url": "http://127.0.0.1:1/v1", "model": f"m{version}", "policy": "p"}
        await store.publish(Resource("main", ResourceKind.ENDPOINT, content))
        text = {"text": f'{{"braces": {version}}}', "role": "coder"}
        await store.publish(Resource("coder prompt", ResourceKind.PROMPT, text))
    only_coder = {"base_url": "http://127.0.0.1:2/v1", "model": "c", "policy": "c", "roles": ["coder"]}
    await store.publish(Resource("a coder's", ResourceKind.ENDPOINT, only_coder))
    for version in (2, 1):
        pins = {"main": version, "coder prompt": version, "a coder's": 1}
        await played(store, team, Rollout("t1", mode=Mode.VAL, resources=pins))
    assert seen == [
        ("m2", ["a coder's", "main"], {"coder": '{"braces": 2}'}),
        ("m1", ["a coder's", "main"], {"coder": '{"braces": 1}'}),
    ]


async def test_a_rollout_keeps_to_one_of_several_servers_and_all_get_some(store: Store) -> None:
    replicas = [f"http://127.0.0.1:{port}/v1" for port in (1, 2)]
    content = {"base_url": replicas[0], "model": "m", "policy": "p", "replicas": replicas}
    await store.publish(Resource("main", ResourceKind.ENDPOINT, content))
    seen: dict[str, set[str]] = {}

    async def team(endpoint):
        assert not endpoint.replicas
        scope = current_scope()
        assert scope is not None
        seen.setdefault(scope.rollout_id, set()).add(endpoint.base_url)
        if len(seen) % 2:
            raise ValueError("once more")

    rollouts = [Rollout("t1", mode=Mode.VAL, resources={"main": 1}, max_attempts=2) for _ in range(24)]
    async with Runner(store, coterie.rollout(team), concurrency=4) as runner:
        await store.enqueue(rollouts)
        await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
        await runner.drain()
    assert all(len(places) == 1 for places in seen.values())
    assert {place for places in seen.values() for place in places} == set(replicas)


async def test_a_missing_resource_fails_the_attempt_with_its_name(store: Store, monkeypatch) -> None:
    await store.publish(Resource("broken", ResourceKind.ENDPOINT, {"base_url": "http://127.0.0.1:1/v1", "modle": "m"}))
    broken = Rollout("t1", mode=Mode.VAL, resources={"broken": 1}, max_attempts=3)
    after, attempt, _ = await played(store, raises, broken)
    assert after.state is RolloutState.DEAD
    assert attempt.number == 1
    assert "lacks 'model'" in str(attempt.error)
    assert "unknown key 'modle'" in str(attempt.error)

    await store.publish(Resource("gone", ResourceKind.PROMPT, {"text": "x"}))
    found = type(store).get_resource
    monkeypatch.setattr(type(store), "get_resource", lambda self, name, version=None: found(self, name, 9))
    _, attempt, _ = await played(store, raises, Rollout("t1", mode=Mode.VAL, resources={"gone": 1}))
    assert "'gone' version 1, which the store does not have" in str(attempt.error)


async def test_parallel_workers_keep_their_own_rewards(store: Store) -> None:
    async def worker(name: str, value: float, wait: float) -> None:
        with acting_as(name) as who:
            await asyncio.sleep(wait)
            coterie.reward(value, role=who.role, agent_path=who.path_text)

    async def team(task):
        # B ends first, although A began first: whoever matches by time gives each the other's.
        await asyncio.gather(worker("A", 1.0, 0.02), worker("B", 0.0, 0.0))

    _, attempt, _ = await played(store, team)
    rewards = (await store.get_rewards([attempt.id]))[attempt.id]
    assert {(reward.role, reward.agent_path): reward.value for reward in rewards} == {("a", "A"): 1.0, ("b", "B"): 0.0}


async def test_the_end_of_an_attempt_waits_for_a_store_that_fails(store: Store, monkeypatch) -> None:
    finish, failures = type(store).finish, 3

    async def failing(self, *args, **options):
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailableError("disk full")
        return await finish(self, *args, **options)

    async def team(task):
        return 1.0

    monkeypatch.setattr(type(store), "finish", failing)
    rollout, _, statistics = await played(store, team)
    assert failures == 0
    assert rollout.state is RolloutState.SUCCEEDED
    assert statistics.succeeded == 1


async def test_work_comes_though_leasing_failed_once(store: Store, monkeypatch, caplog) -> None:
    lease, failures = type(store).lease, 1

    async def failing(self, *args, **options):
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailableError("locked")
        return await lease(self, *args, **options)

    async def team(task):
        return 1.0

    monkeypatch.setattr(type(store), "lease", failing)
    rollout, _, _ = await played(store, team)
    assert rollout.state is RolloutState.SUCCEEDED
    assert "StoreUnavailableError: locked" in caplog.text


async def test_only_rollouts_of_its_run_are_taken(store: Store) -> None:
    async def team(task):
        return 1.0

    other = Rollout("t1", mode=Mode.VAL, run_id="other")
    await store.enqueue([other])
    await played(store, team, Rollout("t1", mode=Mode.VAL, run_id="mine"), run_id="mine")
    assert (await store.get_rollouts([other.id]))[0].state is RolloutState.QUEUED


async def test_instruments_for_its_time_only(store: Store) -> None:
    async def team(task):
        return 1.0

    assert not instrumented()
    async with Runner(store, coterie.rollout(team)):
        assert instrumented()
    assert not instrumented()
    coterie.instrument()
    try:
        async with Runner(store, coterie.rollout(team)):
            pass
        assert instrumented()
    finally:
        coterie.uninstrument()


async def test_a_blocked_event_loop_is_reported(store: Store, caplog) -> None:
    async def team(task):
        time.sleep(0.8)  # noqa: ASYNC251 - this is the fault
        return 1.0

    with caplog.at_level(logging.WARNING):
        await played(store, team, lease_seconds=0.6)
        await asyncio.sleep(0)
    assert "make it a plain 'def'" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"deadline_seconds": -1}, "deadline_seconds is -1"),
        ({"lease_seconds": float("nan")}, "lease_seconds is nan"),
        ({"isolation": "docker"}, "'none' and 'process'"),
        ({"isolation": "process"}, "top level of a file"),
    ],
)
async def test_wrong_arguments(store: Store, options: dict[str, Any], says: str) -> None:
    @coterie.rollout
    def team(task):
        return 1.0

    with pytest.raises(ConfigError, match=says):
        Runner(store, team, **options)
