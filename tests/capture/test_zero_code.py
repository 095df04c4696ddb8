"""``opentelemetry-instrument python app.py``: capture without a line of code, in processes of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.plugins import plugin_entry_points
from coterie.testing import ScriptedModel
from coterie.vocabulary import Attempt, Mode, Rollout, Task

COMMAND = Path(sys.executable).with_name("opentelemetry-instrument")
SETTINGS = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}

APP = """
import os, subprocess, sys, threading
from openai import OpenAI
import coterie

client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)

def ask(words):
    client.chat.completions.create(model="small", messages=[{"role": "user", "content": words}])

with coterie.agent("Senior Analyst"):
    ask("from the main thread")
thread = threading.Thread(target=ask, args=["from another thread"])
thread.start()
thread.join()
coterie.instrument()
ask("instrumented again")
coterie.reward(0.5)
if "child" in sys.argv:
    subprocess.run([sys.executable, "-c", "import coterie; coterie.reward(1.0)"], check=True)
if "fail" in sys.argv:
    raise ValueError("the program failed")
"""


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda body: "said: " + str(body["messages"][-1]["content"])) as server:
        yield server


def run(tmp_path: Path, model: ScriptedModel, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "app.py").write_text(APP)
    return subprocess.run(
        [COMMAND, sys.executable, "app.py", model.base_url, *arguments],
        cwd=tmp_path,
        env={**os.environ, **SETTINGS, **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )


def recorded(path: Path) -> tuple[Rollout, Attempt, Task, Episode]:
    async def read() -> tuple[Rollout, Attempt, Task, Episode]:
        async with coterie.connect(path) as store:
            (rollout,) = (await store.list_rollouts()).items
            (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
            (task,) = await store.get_tasks([rollout.task_id])
            spans = (await store.get_spans([attempt.id]))[attempt.id]
            rewards = (await store.get_rewards([attempt.id]))[attempt.id]
            return rollout, attempt, task, build_episode(task.id, attempt.id, rollout.id, spans, rewards)

    return asyncio.run(read())


def test_a_whole_process_is_one_attempt(tmp_path: Path, model: ScriptedModel) -> None:
    settings = {"COTERIE_RECORD": "team.db", "COTERIE_ROLES": "Senior Analyst=analyst"}
    done = run(tmp_path, model, "child", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    rollout, attempt, task, episode = recorded(tmp_path / "team.db")
    assert (rollout.mode, rollout.state.value, attempt.state.value) == (Mode.PRODUCTION, "succeeded", "succeeded")
    assert "app.py" in str(task.input)
    assert [(turn.role, turn.text) for turn in episode.turns] == [
        ("analyst", "said: from the main thread"),
        ("agent", "said: from another thread"),
        ("agent", "said: instrumented again"),
    ]
    assert [reward.value for reward in episode.rewards] == [0.5]


def test_a_program_that_fails_is_a_failed_attempt(tmp_path: Path, model: ScriptedModel) -> None:
    done = run(tmp_path, model, "fail", COTERIE_RECORD="team.db", COTERIE_CAPTURE_CONTENT="false")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("ValueError: the program failed")
    _, attempt, _, episode = recorded(tmp_path / "team.db")
    assert (attempt.state.value, attempt.error) == ("failed", "ValueError")
    assert [turn.text for turn in episode.turns] == ["", "", ""]
    assert [turn.messages for turn in episode.turns] == [(), (), ()]


def test_wrong_settings_are_said_and_the_program_runs(tmp_path: Path, model: ScriptedModel) -> None:
    settings = {"COTERIE_RECORD": "mongo://x", "COTERIE_ROLES": "Coder,A=b c", "COTERIE_CAPTURE_CONTENT": "maybe"}
    done = run(tmp_path, model, **settings)
    assert done.returncode == 0
    assert "COTERIE_RECORD: store 'mongo://x': unknown kind 'mongo'" in done.stderr
    assert "COTERIE_ROLES: 'Coder' is no pair" in done.stderr
    assert "'b c', which is no role name" in done.stderr
    assert "COTERIE_CAPTURE_CONTENT is 'maybe'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(model.requests) == 3
    assert all("x-coterie-call-id" in request.headers for request in model.requests)


def test_the_entry_point_is_no_plugin() -> None:
    assert "coterie_capture" not in [entry.name for entry in plugin_entry_points()]
