"""``coterie run`` in processes of its own: what it plays, what it says, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from coterie import connect
from coterie.cli import main
from coterie.plugins import plugin_entry_points
from coterie.vocabulary import AttemptState, Mode, Rollout, RolloutState, Task

COTERIE = Path(sys.executable).with_name("coterie")
PLUGINS_OFF = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(entry.name for entry in plugin_entry_points())}
"""Importing the frameworks would take most of the time."""
APP = """
import asyncio, os, time
from pathlib import Path
import coterie

@coterie.rollout
async def sleeps(task):
    Path(task.id + ".began").touch()
    try:
        await asyncio.sleep(task.input)
    finally:
        Path(task.id + ".ended").touch()
    return 1.0

def blocks(task):
    Path(task.id + ".began").touch()
    time.sleep(task.input)
    return float(os.getpid())

@coterie.rollout
async def swallows(task):
    Path(task.id + ".began").touch()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

def fails(task):
    raise ValueError("the agents disagree")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def queue(project: Path, seconds: float, count: int = 1, **options: object) -> list[str]:
    """Queue rollouts of a task ``nap`` that takes so long; gives their ids."""

    async def queued() -> list[str]:
        async with connect(project / "store.db") as store:
            await store.add_tasks([Task("nap", seconds)])
            rollouts = [Rollout("nap", mode=Mode.VAL, **options) for _ in range(count)]  # type: ignore[arg-type]
            await store.enqueue(rollouts)
            return [rollout.id for rollout in rollouts]

    return asyncio.run(queued())


def states(project: Path, ids: Sequence[str]) -> list[tuple[RolloutState, list[tuple[AttemptState, str]]]]:
    """State of each rollout, and states and workers of its attempts."""

    async def read() -> list[tuple[RolloutState, list[tuple[AttemptState, str]]]]:
        async with connect(project / "store.db") as store:
            attempts = await store.get_attempts(ids)
            return [
                (rollout.state, [(attempt.state, attempt.worker) for attempt in attempts[rollout.id]])
                for rollout in await store.get_rollouts(ids)
            ]

    return asyncio.run(read())


@contextmanager
def runner(project: Path, app: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [COTERIE, "run", f"app.py:{app}", "--store", "store.db", *options],
        cwd=project,
        env={**os.environ, **PLUGINS_OFF},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(file: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"no {file.name}"
        time.sleep(0.02)


def test_once_plays_what_is_queued_and_ends(project: Path) -> None:
    ids = queue(project, 0.01, 20)
    with runner(project, "sleeps", "--once", "--concurrency", "8", "--worker", "w1") as process:
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert out == ""
    lines = said.splitlines()
    assert lines[0].endswith("w1 plays sleeps, 8 at once")
    assert "20 succeeded, 0 failed" in lines[-1]
    assert states(project, ids) == [(RolloutState.SUCCEEDED, [(AttemptState.SUCCEEDED, "w1")])] * 20


def test_json_lines(project: Path) -> None:
    queue(project, 0, 3)
    with runner(project, "fails", "--until-idle", "0.1", "--json") as process:
        out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["started", "attempt", "attempt", "attempt", "stopped"]
    assert events[1]["error"].startswith("ValueError: the agents disagree")
    assert (events[1]["state"], events[1]["cause"], events[1]["written"]) == ("failed", "error", True)
    assert events[-1]["failed"] == 3


def test_the_first_signal_lets_attempts_end_and_takes_no_more(project: Path) -> None:
    ids = queue(project, 1.0, 2)
    with runner(project, "sleeps", "--concurrency", "1") as process:
        wait_for(project / "nap.began")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "SIGTERM: taking no more work; 1 running attempts have 30 s to end" in said
    (first, _), (second, attempts) = states(project, ids)
    assert (first, second, attempts) == (RolloutState.SUCCEEDED, RolloutState.QUEUED, [])


def test_what_does_not_end_in_time_is_given_back(project: Path) -> None:
    (rollout,) = queue(project, 60)
    with runner(project, "sleeps", "--drain-seconds", "0.3", "--isolation", "process") as process:
        wait_for(project / "nap.began")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    ((state, attempts),) = states(project, [rollout])
    assert (state, attempts[0][0]) == (RolloutState.QUEUED, AttemptState.CANCELLED)


def test_the_second_signal_gives_back_at_once(project: Path) -> None:
    (rollout,) = queue(project, 60)
    with runner(project, "sleeps", "--drain-seconds", "50") as process:
        wait_for(project / "nap.began")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "taking no more work" not in process.stderr.readline():
            pass
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert said.splitlines()[-1] == "Stopped at once; running attempts were given back."
    ((state, attempts),) = states(project, [rollout])
    assert (state, attempts[0][0]) == (RolloutState.QUEUED, AttemptState.CANCELLED)


@pytest.mark.parametrize("app", ["blocks", "swallows"])
def test_what_nothing_can_end_does_not_keep_the_process(project: Path, app: str) -> None:
    (rollout,) = queue(project, 60)
    with runner(project, app, "--drain-seconds", "0") as process:
        wait_for(project / "nap.began")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "What could not be ended ends with this process." in said
    assert states(project, [rollout])[0][0] is RolloutState.QUEUED


def test_a_deadline_kills_what_runs_in_a_worker_process(project: Path) -> None:
    rollout, _ = queue(project, 60, 2)
    options = ["--isolation", "process", "--processes", "1", "--deadline", "0.3", "--once"]
    with runner(project, "blocks", *options) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    # Two failed so; each kind of failure is told once.
    assert said.count("It ran longer than its deadline of 0.3 s and was killed with its worker process.") == 1
    assert states(project, [rollout])[0][0] is RolloutState.DEAD


def test_many_runners_one_of_them_killed_one_asleep_and_every_rollout_succeeds_once(project: Path) -> None:
    queue(project, 0.2, 0)
    options = ["--concurrency", "8", "--lease", "3"]
    names = ("killed", "asleep", "third", "fourth")
    with ExitStack() as stack:
        runners = {name: stack.enter_context(runner(project, "sleeps", *options, "--worker", name)) for name in names}
        for process in runners.values():
            assert process.stderr is not None
            assert "8 at once" in process.stderr.readline()
        ids = queue(project, 0.2, 120, max_attempts=5)
        end = time.monotonic() + 30
        while not {"killed", "asleep"} <= working(project, ids):
            assert time.monotonic() < end
        runners.pop("killed").kill()
        runners["asleep"].send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        runners["asleep"].send_signal(signal.SIGCONT)
        assert all_ended(project, ids)
        for process in runners.values():
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    played = states(project, ids)
    for state, attempts in played:
        assert state is RolloutState.SUCCEEDED
        assert [attempt for attempt, _ in attempts].count(AttemptState.SUCCEEDED) == 1
        assert attempts[-1][0] is AttemptState.SUCCEEDED
    lost = {worker for _, attempts in played for state, worker in attempts if state is AttemptState.FAILED}
    assert "killed" in lost
    assert lost <= {"killed", "asleep"}


def working(project: Path, ids: Sequence[str]) -> set[str]:
    """The workers that run attempts now."""
    return {
        worker for _, attempts in states(project, ids) for state, worker in attempts if state is AttemptState.RUNNING
    }


def all_ended(project: Path, ids: Sequence[str]) -> bool:
    async def ended() -> bool:
        async with connect(project / "store.db") as store:
            return all(rollout.state.terminal for rollout in await store.wait(ids, timeout_seconds=60))

    return asyncio.run(ended())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["app.py:nope", "--store", "store.db"], "there is no 'nope'"),
        (["other.py:sleeps", "--store", "store.db"], "there is no file"),
        (["app.py:sleeps", "--store", "gone.db"], "there is no file gone.db"),
        (["app.py:sleeps", "--store", "ftp://host/x"], "unknown kind 'ftp'"),
        (["app.py:sleeps", "--store", "notes.txt"], "is not a SQLite database"),
        (["app.py:sleeps", "--store", "store.db", "--processes", "2"], "--isolation process"),
        (["app.py:sleeps", "--store", "store.db", "--once", "--until-idle", "1"], "give one of them"),
        (["app.py:sleeps", "--store", "store.db", "--lease", "0"], "--lease 0.0"),
        (["app.py:sleeps", "--store", "store.db", "--deadline", "-1"], "deadline_seconds is -1.0"),
        (["app.py:sleeps"], "--store"),
    ],
)
def test_wrong_input_is_a_sentence(project: Path, monkeypatch, capsys, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(project)
    queue(project, 0)
    (project / "notes.txt").write_text("These are notes, and no database at all. " * 200)
    path = list(sys.path)
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    sys.path[:] = path
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") or "Usage: " in said
    assert says in said
