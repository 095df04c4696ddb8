"""A team at work that a test may kill: servers, runners and a database as processes, and a driver that gives them work
and remembers what was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import psutil

from coterie.plugins import plugin_entry_points
from coterie.store.base import Store
from coterie.store.http import HttpStore
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
    Reward,
    Rollout,
    RolloutState,
    Run,
    Span,
    Task,
    new_id,
)

COMMAND = [sys.executable, "-c", "from coterie.cli import main; main()"]
Found = TypeVar("Found")
MARK = "COTERIE_TEST_MARK"
SECONDS_TO_STOP = 60
OPEN_ROLLOUTS = 60
"""No more rollouts than this are queued or running at once."""
PATIENT, IMPATIENT = 1000, 2
"""Attempts that a rollout has: most must succeed in the end, some may be used up."""
APP = """
import asyncio, time
import coterie

@coterie.tool
def look_up(number):
    return number + 1

async def asynchronous(task):
    with coterie.agent("searcher"):
        for number in range(task.input["calls"]):
            look_up(number)
            if number == 0:
                coterie.reward(0.5, name="early")
            await asyncio.sleep(task.input["seconds"] / task.input["calls"])
    return 1.0

def synchronous(task):
    with coterie.agent("searcher"):
        for number in range(task.input["calls"]):
            look_up(number)
            if number == 0:
                coterie.reward(0.5, name="early")
            time.sleep(task.input["seconds"] / task.input["calls"])
    return 1.0
"""
TASKS = [
    Task(f"task-{calls}", {"calls": calls, "seconds": seconds}) for calls, seconds in ((1, 0.02), (3, 0.1), (5, 0.2))
]


class Process:
    """A command of ``coterie`` that is started again and again."""

    def __init__(self, folder: Path, name: str, ready: str, *arguments: str, env: Mapping[str, str]) -> None:
        self.name = name
        self._folder = folder
        self._ready = ready
        self._arguments = arguments
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.ended_by_itself: list[int] = []
        """Exit codes."""

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        self._starts += 1
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *self._arguments],
                cwd=self._folder,
                env=dict(self._env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill it in the midst of what it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(SECONDS_TO_STOP)

    def keep_alive(self) -> None:
        """Start it again if it ended by itself, as whoever keeps services running does."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self.ended_by_itself.append(code)
            self.start()

    def stop(self) -> int:
        """End it in peace; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(SECONDS_TO_STOP)

    def abandon(self) -> None:
        """For the end of a test that failed."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def ready(self) -> bool:
        """It has said that it works."""
        assert self._process is not None
        return self._process.poll() is None and self._ready in self._log.read_text(errors="replace")

    def said(self) -> list[str]:
        """The lines of all that were started, the last of each perhaps cut off."""
        logs = sorted(self._folder.glob(f"{self.name}.*.log"))
        return [line for log in logs for line in log.read_text(errors="replace").splitlines()]

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.name}.{self._starts:04d}.log"


class Team:
    """Servers and runners of one store, in a folder."""

    def __init__(self, folder: Path, store: str, *, servers: int, runners: int) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        (folder / "app.py").write_text(APP)
        self._mark = uuid.uuid4().hex
        plugins = ",".join(entry.name for entry in plugin_entry_points())
        self._env = {
            **os.environ,
            MARK: self._mark,
            "TMPDIR": str(self.temporary),
            # Importing the frameworks would take most of the time.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": plugins,
        }
        self.ports = [free_port() for _ in range(servers)]
        self.servers = [self._server(number, port, store) for number, port in enumerate(self.ports)]
        self._count_of_runners = runners
        self.runners: list[Process] = []

    async def start(self) -> None:
        """Start servers, then runners; return when the servers take requests."""
        for server in self.servers:
            server.start()
            await until(lambda server=server: server.ready, 120, f"{server.name} is ready")  # type: ignore[misc]
        self.runners = [self._runner(number) for number in range(self._count_of_runners)]
        for runner in self.runners:
            runner.start()

    @property
    def token(self) -> str:
        return (self.folder / "team.token").read_text().strip()

    async def connect(self, server: int) -> HttpStore:
        """A client of one of the servers. It waits for its server as long as a test may take."""
        return await HttpStore.open(self.address(server), token=self.token, retry_seconds=600)

    def address(self, server: int) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def keep_alive(self) -> None:
        for process in [*self.servers, *self.runners]:
            process.keep_alive()

    def left(self) -> list[str]:
        """The processes of this team that are there, of whichever parent."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.cmdline()}")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _server(self, number: int, port: int, store: str) -> Process:
        arguments = ["serve", "--store", store, "--port", str(port), "--tokens", str(self.folder / "team.tokens")]
        return Process(self.folder, f"server-{number}", "Coterie listens at", *arguments, env=self._env)

    def _runner(self, number: int) -> Process:
        # The last one plays what blocks, in worker processes of its own.
        last = number == self._count_of_runners - 1
        function, more = (
            ("synchronous", ["--isolation", "process", "--processes", "2"]) if last else ("asynchronous", [])
        )
        at = self.address(number % len(self.servers))
        arguments = ["run", f"app.py:{function}", "--store", at, "--json", "--lease", "3", "--concurrency", "6", *more]
        env = {**self._env, "COTERIE_TOKEN": self.token}
        return Process(self.folder, f"runner-{number}", '"event": "started"', *arguments, env=env)


@dataclass
class Driver:
    """Gives work and writes records of all kinds, and remembers what the store acknowledged."""

    stores: Sequence[Store]
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    spans: set[tuple[str, str]] = field(default_factory=set)
    rewards: dict[str, Reward] = field(default_factory=dict)
    versions: dict[int, Resource] = field(default_factory=dict)
    metrics: dict[int, float] = field(default_factory=dict)
    decisions: set[str] = field(default_factory=set)
    ended: int = 0

    @property
    def acknowledged(self) -> int:
        """How many records."""
        kinds = (self.rollouts, self.spans, self.rewards, self.versions, self.metrics, self.decisions)
        return sum(map(len, kinds))

    async def drive(self) -> None:
        """Until ``stopped``."""
        await self.stores[0].add_tasks(TASKS)
        await self.stores[0].save_run(Run("run", "train", "under fire", {}))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._enqueue())
            for number, store in enumerate(self.stores):
                group.create_task(self._write_spans(store, f"{number + 1:032x}"))
                group.create_task(self._publish(store, number))
                group.create_task(self._note(store, number))

    async def _enqueue(self) -> None:
        open_: list[str] = []
        count = 0
        while not self.stopped.is_set():
            store = self.stores[count % len(self.stores)]
            some = [
                Rollout(
                    TASKS[number % len(TASKS)].id,
                    mode=Mode.VAL,
                    max_attempts=IMPATIENT if number % 5 == 0 else PATIENT,
                )
                for number in range(10)
            ]
            count += 1
            await store.enqueue(some)
            self.rollouts |= {rollout.id: rollout for rollout in some}
            open_ += [rollout.id for rollout in some]
            while len(open_) > OPEN_ROLLOUTS - 10 and not self.stopped.is_set():
                told = await store.wait(open_, at_least=1, timeout_seconds=2)
                open_ = [rollout.id for rollout in told if not rollout.state.terminal]
                succeeded = [rollout.id for rollout in told if rollout.state is RolloutState.SUCCEEDED]
                self.ended += len(told) - len(open_)
                await self._judge(store, succeeded)

    async def _judge(self, store: Store, rollout_ids: Sequence[str]) -> None:
        attempts = await store.get_attempts(rollout_ids)
        rewards = [
            Reward(rollout_id, tried[-1].id, random.random(), "judged", "judge")
            for rollout_id, tried in attempts.items()
        ]
        await store.add_rewards(rewards)
        self.rewards |= {reward.id: reward for reward in rewards}

    async def _write_spans(self, store: Store, trace_id: str) -> None:
        number = 0
        while not self.stopped.is_set():
            some = [
                Span(trace_id, f"{number + n + 1:016x}", "production", 1, 2, attributes={"text": "x" * 500})
                for n in range(5)
            ]
            number += 5
            await store.add_spans(some)
            self.spans |= {(span.trace_id, span.span_id) for span in some}
            await asyncio.sleep(0.02)

    async def _publish(self, store: Store, number: int) -> None:
        count = 0
        while not self.stopped.is_set():
            content = {"text": f"prompt {count} of publisher {number}"}
            count += 1
            published = await store.publish(Resource("prompt", ResourceKind.PROMPT, content))
            assert published.version not in self.versions, "one version was given to two"
            self.versions[published.version] = published
            await asyncio.sleep(0.2)

    async def _note(self, store: Store, number: int) -> None:
        step = number
        while not self.stopped.is_set():
            await store.add_metrics([Metrics("run", step, {"loss": float(step)})])
            self.metrics[step] = float(step)
            step += len(self.stores)
            decision = Decision("run", "published", "policy", {}, id=new_id("de"))
            await store.add_decision(decision)
            self.decisions.add(decision.id)
            await asyncio.sleep(0.1)


async def check_all(store: Store, driver: Driver, runners: Sequence[Process]) -> None:
    """Hold the store against what was acknowledged: nothing lost, nothing doubled, all work ended."""
    ids = list(driver.rollouts)
    rollouts = await store.get_rollouts(ids)
    assert all(rollout.state.terminal for rollout in rollouts)
    attempts = await by_some(store.get_attempts, ids)
    for rollout in rollouts:
        _check_rollout(rollout, attempts[rollout.id])

    succeeded = {
        one.id: rollout for rollout in rollouts for one in attempts[rollout.id] if one.state is AttemptState.SUCCEEDED
    }
    # Of what runners said that it is written, some is cut off where they were killed.
    said = [
        told
        for runner in runners
        for line in runner.said()
        if line.startswith('{"event": "attempt"') and line.endswith("}") and (told := json.loads(line))["written"]
    ]
    assert {told["attempt_id"] for told in said if told["state"] == "succeeded"} <= set(succeeded)

    calls = {task.id: task.input["calls"] for task in TASKS}
    spans = await by_some(store.get_spans, list(succeeded))
    rewards = await by_some(store.get_rewards, list(succeeded))
    for attempt_id, rollout in succeeded.items():
        names = [span.name for span in spans[attempt_id]]
        # The attempt itself, its agent, and each call of the tool.
        assert len(names) == 2 + calls[rollout.task_id], (attempt_id, names)
        assert len({span.span_id for span in spans[attempt_id]}) == len(names)
        given = sorted(reward.name for reward in rewards[attempt_id] if reward.source != "judge")
        assert given == ["early", "reward"], (attempt_id, given)
    judged = {reward.id: reward for many in rewards.values() for reward in many if reward.source == "judge"}
    assert {id_: judged.get(id_) for id_ in driver.rewards} == driver.rewards

    for trace_id in {trace_id for trace_id, _ in driver.spans}:
        kept = [span.span_id for span in (await store.list_spans(trace_id=trace_id, limit=10_000_000)).items]
        assert len(set(kept)) == len(kept)
        assert {span_id for trace, span_id in driver.spans if trace == trace_id} <= set(kept)

    versions = await store.list_resources(name="prompt")
    assert [resource.version for resource in versions] == list(range(1, len(versions) + 1))
    assert [resource.version for resource in versions if resource.status is ResourceStatus.ACTIVE] == [len(versions)]
    by_number = {resource.version: _without_status(resource) for resource in versions}
    published = {number: _without_status(resource) for number, resource in driver.versions.items()}
    assert {number: by_number.get(number) for number in published} == published
    texts = [resource.content["text"] for resource in versions]
    assert len(set(texts)) == len(texts), "a prompt was published twice"

    figures = {metrics.step: metrics.values["loss"] for metrics in await store.get_metrics("run")}
    assert driver.metrics.items() <= figures.items()
    decisions = [decision.id for decision in await store.get_decisions("run")]
    assert len(set(decisions)) == len(decisions)
    assert driver.decisions <= set(decisions)


def _check_rollout(rollout: Rollout, tried: Sequence[Attempt]) -> None:
    assert [one.number for one in tried] == list(range(1, len(tried) + 1))
    states = [one.state for one in tried]
    failed = [one for one in tried if one.state is AttemptState.FAILED]
    # Nothing that happened to a server or the database is an attempt's fault.
    assert {one.cause for one in failed} <= {FailureCause.LEASE_EXPIRED}, [one.error for one in failed]
    assert AttemptState.RUNNING not in states
    if rollout.state is RolloutState.SUCCEEDED:
        assert states.count(AttemptState.SUCCEEDED) == 1
        assert states[-1] is AttemptState.SUCCEEDED
        assert rollout.reason is None
    else:
        assert (rollout.state, AttemptState.SUCCEEDED in states) == (RolloutState.DEAD, False)
        assert len(failed) == rollout.max_attempts == IMPATIENT
        assert rollout.reason


def _without_status(resource: Resource) -> Resource:
    """Each is active when it is published, and retired by the next."""
    return replace(resource, status=ResourceStatus.RETIRED)


async def by_some(
    get: Callable[[Sequence[str]], Awaitable[Mapping[str, Found]]], ids: Sequence[str]
) -> dict[str, Found]:
    """What ``get`` gives for all ids, asked for in parts."""
    found: dict[str, Found] = {}
    for start in range(0, len(ids), 200):
        found |= await get(ids[start : start + 200])
    return found


async def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for what other processes announce by no event."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
