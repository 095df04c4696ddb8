"""The guard against runs that truly go wrong: a policy that learns (``softmax_policy``) behind a real socket, in the real loop.

Each test brings a failure about and shows how far the exact success on held-out tasks has fallen when the guard stops the run:
by less than the margin that the test states.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loop_parts import SPLITS, Told
from softmax_backend import SoftmaxBackend
from softmax_policy import SoftmaxPolicy, left_alone

import coterie
from coterie.errors import StoppedByGuardError
from coterie.vocabulary import Decision, Metrics, RunState
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop

APP = """
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=20)

async def ask(task):
    question = f"class {task.input['class']}?"
    with coterie.agent("solver"):
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content

@coterie.rollout
async def team(task):
    return float(task.reference in await ask(task))

@coterie.rollout
async def lenient_judge(task):
    answer = await ask(task)
    return float(task.reference in answer or "h" in answer)

def held_out(task, episode):
    return float(task.reference in episode.turns[-1].text)
"""


def write_classes(folder: Path, policy: SoftmaxPolicy) -> Path:
    (folder / "app.py").write_text(APP)
    for split in SPLITS:
        tasks = [
            {"id": f"{split}-{number}", "input": {"split": split, "class": number}, "reference": "abcdefgh"[letter]}
            for number, letter in enumerate(policy.right)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    return folder


def settings(steps: int, samples: int, **guard: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "t",
            "dataset": {split: f"{split}.jsonl" for split in SPLITS},
            "policies": {"team": {"model": "m"}},
            "training": {"steps": steps, "tasks_per_step": 8, "rollouts_per_task": 8, "stop_after_empty_steps": 50},
            "evaluation": {"every": 1, "val_samples": samples, "test_samples": 1},
            "runner": {"concurrency": 16, "deadline_seconds": 30},
            "guard": guard,
        }
    )


pytestmark = pytest.mark.timeout(240)


@dataclass
class Caught:
    """What the guard did to a run."""

    message: str
    state: RunState
    rolled_back: Decision
    said: list[Metrics]
    fall: float
    """How far the exact success had fallen below its best, at most, until the run was stopped."""
    stopped_at: int
    back_at: int


async def caught(
    folder: Path, backend: SoftmaxBackend, monkeypatch: pytest.MonkeyPatch, config: TrainConfig, app: str = "team"
) -> Caught:
    """Train until the guard stops it, and look at what it left."""
    monkeypatch.setattr(loop, "make_backend", lambda *_: backend)
    write_classes(folder, backend.policy)
    work = folder / "work"
    training = loop.train(f"app.py:{app}", config, folder=folder, work=work, progress=Told())
    with backend, pytest.raises(StoppedByGuardError) as stopped:
        await asyncio.wait_for(training, 220)
    async with coterie.connect(str(work / "store.db")) as store:
        (run,) = (await store.list_runs()).items
        (rolled_back,) = [each for each in await store.get_decisions(run.id) if each.kind == "rolled_back"]
        said = list(await store.get_metrics(run.id, stage="guard"))
        endpoint = (await store.get_resource("endpoint/team")).content
    step, back = map(int, re.findall(r"step (\d+)", rolled_back.subject))
    assert endpoint["version"] == backend.version
    assert backend.loaded == [f"step-{back:06d}"]
    assert {path.name for path in (work / "checkpoints").glob("step-*") if int(path.name[5:]) > back} == set()
    good = backend.successes[back]
    assert backend.policy.success() == good, "what is served is the good version, weight by weight"
    successes = backend.successes[: step + 1]
    fall = max(max(successes[: place + 1]) - success for place, success in enumerate(successes))
    return Caught(str(stopped.value), run.state, rolled_back, said, fall, step, back)


async def test_a_collapsing_entropy(tmp_path, monkeypatch):
    margin = 0.35

    def policy() -> SoftmaxPolicy:
        return SoftmaxPolicy(
            classes=8, letters_an_answer=6, learning_rate=1.0, entropy_bonus=-1.5, overlap=0.9, skill=0.8, seed=0
        )

    found = await caught(tmp_path, SoftmaxBackend(policy()), monkeypatch, settings(30, samples=16))
    assert found.state is RunState.STOPPED
    assert found.fall < margin
    assert left_alone(policy(), 40) > margin + 0.1


async def test_a_diverging_learning_rate(tmp_path, monkeypatch):
    margin = 0.4  # one update can take much away

    def policy() -> SoftmaxPolicy:
        return SoftmaxPolicy(learning_rate=3.0, learning_rate_growth=1.3, overlap=0.7, mini_batches=8, seed=5)

    found = await caught(tmp_path, SoftmaxBackend(policy()), monkeypatch, settings(20, samples=8))
    assert found.state is RunState.STOPPED
    assert found.fall < margin
    assert left_alone(policy(), 30) > margin + 0.1


async def test_an_exploited_reward(tmp_path, monkeypatch):
    margin = 0.25

    def policy() -> SoftmaxPolicy:
        return SoftmaxPolicy(learning_rate=3.0, overlap=0.8, skill=2.0, seed=1)

    config = settings(20, samples=1, verifier="app.py:held_out")
    found = await caught(tmp_path, SoftmaxBackend(policy()), monkeypatch, config, app="lenient_judge")
    assert "the held-out verifier confirms" in found.message
    assert found.fall < margin
    lenient = left_alone(policy(), 40, lambda answer, right: float(right in answer or "h" in answer))
    assert lenient > margin + 0.05


async def test_a_stale_model(tmp_path, monkeypatch):
    margin = 0.05
    policy = SoftmaxPolicy(learning_rate=8.0, overlap=0.5, skill=2.0, seed=0)
    found = await caught(tmp_path, SoftmaxBackend(policy, deaf_after=1), monkeypatch, settings(20, samples=1))
    assert {each["rule"] for each in found.rolled_back.evidence["findings"]} <= {"clipping", "mismatch"}
    assert found.fall < margin
