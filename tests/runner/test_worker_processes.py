"""``isolation="process"``: what runs in a worker process, what comes back, and that nothing outlives its deadline."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import coterie
from coterie.apps import load_app
from coterie.assembly import load_episodes, load_rewards
from coterie.conventions import CHAT, OPERATION
from coterie.roles import set_role_map
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.testing import ScriptedModel
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

APP = """
import asyncio, os, re, subprocess, sys, time
from pathlib import Path
import coterie
from coterie.roles import acting_as

@coterie.rollout
async def team(task, endpoint):
    from openai import AsyncOpenAI
    with acting_as("Coder"):
        async with AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
    (call,) = coterie.calls()
    coterie.reward(0.5, role=call.role, call_id=call.call_id)
    return {"team": 1.0}

def spins(task):
    Path(task.input).write_text(str(os.getpid()))
    coterie.reward(0.5, name="before")
    while True:
        pass

def holds_the_interpreter(task):
    Path(task.input).write_text(str(os.getpid()))
    re.match("(a+)+$", "a" * 60 + "b")

def spawns(task):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(task.input).write_text(str(child.pid))
    time.sleep(600)

def process_id(task):
    return float(os.getpid())

def fails(task):
    if task.id == "exits":
        os._exit(3)
    if task.id == "is killed":
        os.kill(os.getpid(), 9)
    raise ValueError("the agents disagree")
"""


@pytest.fixture
def app(tmp_path: Path) -> str:
    file = tmp_path / "app_in_processes.py"
    file.write_text(APP)
    return str(file)


async def played(store: Store, spec: str, rollout: Rollout, **options: object) -> tuple[Rollout, Attempt]:
    async with Runner(store, load_app(spec), isolation="process", processes=1, **options):  # type: ignore[arg-type]
        await store.enqueue([rollout])
        (ended,) = await store.wait([rollout.id], timeout_seconds=60)
    return ended, (await store.get_attempts([rollout.id]))[rollout.id][-1]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


async def dead_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.02)
    return not alive(pid)


async def test_spans_rewards_and_tokens_come_back(store: Store, app: str) -> None:
    set_role_map({"Coder": "programmer"})
    try:
        with ScriptedModel(lambda body: "print(1)", policy_version=4) as model:
            content = {"base_url": model.base_url, "model": "m", "policy": "p"}
            await store.publish(Resource("main", ResourceKind.ENDPOINT, content))
            ended, attempt = await played(store, f"{app}:team", Rollout("t1", resources={"main": 1}))
    finally:
        set_role_map({})
    assert (ended.state, attempt.error, attempt.warnings) == (RolloutState.SUCCEEDED, None, ())
    spans = (await store.get_spans([attempt.id]))[attempt.id]
    (root,) = [span for span in spans if span.parent_id is None]
    (chat,) = [span for span in spans if span.attributes.get(OPERATION) == CHAT]
    assert chat.parent_id == root.span_id
    assert {span.rollout_id for span in spans} == {ended.id}
    rewards = (await store.get_rewards([attempt.id]))[attempt.id]
    assert [(reward.role, reward.value) for reward in rewards] == [("programmer", 0.5), (None, 1.0)]
    (episode,) = await load_episodes(store, [ended.id])
    assert episode.turns[0].trainable
    assert (episode.turns[0].role, episode.turns[0].policy_version) == ("programmer", 4)
    assert rewards[0].call_id == episode.turns[0].call_id


async def test_a_busy_loop_is_killed_at_its_deadline_and_the_process_replaced(
    store: Store, app: str, tmp_path: Path
) -> None:
    await store.add_tasks([coterie.Task("spin", str(tmp_path / "pid"))])
    ended, attempt = await played(
        store, f"{app}:spins", Rollout("spin", mode=Mode.VAL, max_attempts=2), deadline_seconds=0.5
    )
    assert ended.state is RolloutState.DEAD
    assert attempt.number == 2
    assert attempt.cause is FailureCause.DEADLINE
    assert attempt.error == "It ran longer than its deadline of 0.5 s and was killed with its worker process."
    assert await dead_within(int((tmp_path / "pid").read_text()), 5)
    (root,) = (await store.get_spans([attempt.id]))[attempt.id]
    assert (root.status, root.parent_id) == (SpanStatus.ERROR, None)
    assert root.end_ns > root.start_ns
    assert [reward.name for reward in (await store.get_rewards([attempt.id]))[attempt.id]] == ["before"]


async def test_what_an_attempt_started_dies_with_it(store: Store, app: str, tmp_path: Path) -> None:
    await store.add_tasks([coterie.Task("spawn", str(tmp_path / "pid"))])
    _, attempt = await played(store, f"{app}:spawns", Rollout("spawn", mode=Mode.VAL), deadline_seconds=1.0)
    assert attempt.cause is FailureCause.DEADLINE
    assert await dead_within(int((tmp_path / "pid").read_text()), 5)


async def test_an_idle_process_is_used_again_and_gone_at_the_end(store: Store, app: str) -> None:
    rollouts = [Rollout("t1", mode=Mode.VAL) for _ in range(4)]
    async with Runner(store, load_app(f"{app}:process_id"), isolation="process", processes=1) as runner:
        await store.enqueue(rollouts)
        await store.wait([rollout.id for rollout in rollouts], timeout_seconds=60)
        assert runner.concurrency == 1
    rewards = await load_rewards(store, [rollout.id for rollout in rollouts])
    (pid,) = {int(reward.value) for each in rewards.values() for reward in each}
    assert pid != os.getpid()
    assert await dead_within(pid, 5)


async def test_a_process_that_fails(store: Store, app: str) -> None:
    says = {
        "raises": "ValueError: the agents disagree\n",
        "exits": "ended unexpectedly, with exit code 3.",
        "is killed": "ended unexpectedly, killed by SIGKILL.",
    }
    await store.add_tasks([coterie.Task(name, None) for name in says])
    rollouts = {name: Rollout(name, mode=Mode.VAL) for name in says}
    async with Runner(store, load_app(f"{app}:fails"), isolation="process", processes=1):
        await store.enqueue(list(rollouts.values()))
        await store.wait([rollout.id for rollout in rollouts.values()], timeout_seconds=60)
    attempts = await store.get_attempts([rollout.id for rollout in rollouts.values()])
    for name, rollout in rollouts.items():
        (attempt,) = attempts[rollout.id]
        assert (attempt.state, attempt.cause) == (AttemptState.FAILED, FailureCause.ERROR)
        assert says[name] in str(attempt.error)
        (root,) = (await store.get_spans([attempt.id]))[attempt.id]
        assert root.status is SpanStatus.ERROR


async def test_an_app_that_imports_only_here_fails_with_the_reason(store: Store, app: str) -> None:
    function = load_app(f"{app}:fails")
    Path(app).write_text("import not_there_at_all\n")  # noqa: ASYNC240
    async with Runner(store, function, isolation="process"):
        rollout = Rollout("t1", mode=Mode.VAL)
        await store.enqueue([rollout])
        (ended,) = await store.wait([rollout.id], timeout_seconds=60)
    assert "No module named 'not_there_at_all'" in str(ended.reason)


RUNNER = """
import asyncio, sys
import coterie
from coterie.apps import load_app
from coterie.runner import Runner

async def main():
    async with coterie.connect(sys.argv[1]) as store:
        async with Runner(store, load_app(sys.argv[2]), lease_seconds=0.5, isolation=sys.argv[3]):
            await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("isolation", "function"), [("none", "spins"), ("process", "spins"), ("process", "holds_the_interpreter")]
)
async def test_the_work_of_a_killed_runner_is_finished_by_another(
    store: Store, app: str, tmp_path: Path, isolation: str, function: str
) -> None:
    pid_file = tmp_path / "pid"
    await store.add_tasks([coterie.Task("spin", str(pid_file))])
    rollout = Rollout("spin", mode=Mode.VAL, max_attempts=2)
    await store.enqueue([rollout])
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUNNER, str(tmp_path / "store.db"), f"{app}:{function}", isolation
    )
    try:
        async with asyncio.timeout(60):
            while not pid_file.exists() or not pid_file.read_text():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
    finally:
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
    assert await dead_within(int(pid_file.read_text()), 5)
    async with Runner(store, load_app(f"{app}:process_id")):
        (ended,) = await store.wait([rollout.id], timeout_seconds=30)
    first, second = (await store.get_attempts([rollout.id]))[rollout.id]
    assert (first.state, first.cause) == (AttemptState.FAILED, FailureCause.LEASE_EXPIRED)
    assert (ended.state, second.state) == (RolloutState.SUCCEEDED, AttemptState.SUCCEEDED)
