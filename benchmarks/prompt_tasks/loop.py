"""The tuning loop alone: as many LLM calls as the peer's prompt tuner makes, all of them answered at once.

The same work on both sides: one agent that makes one call, a seed prompt, textual gradients and edits, beam 2, branch 2,
gradient batches of 2 and validation batches of 4 tasks. The peer plays a prompt on a task again each time; ours keeps what was
played, so it gets more rounds, until it has made at least as many calls.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coterie
from coterie.rollouts import RolloutFunction
from coterie.testing import ScriptedModel
from coterie.vocabulary import Task
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.run import optimise
from prompt_tasks.planted import ask, client_of, close_client, content_text
from prompt_tasks.running import Quiet, write_tasks

SEED = "You are a helpful agent."
PEER = Path(__file__).parents[1] / "peers" / "agentlightning_prompts.py"
PEER_CALLS = 88
"""Of the peer with these settings: 4 + (8 + 8 + 20 + 4) + (8 + 8 + 24 + 4)."""
ROUNDS, OUR_ROUNDS = 2, 4


class InstantModel:
    """Answers everything at once; every text that it writes is a new one."""

    def __init__(self) -> None:
        self.reflections = 0
        self._numbers = itertools.count(1)

    def __call__(self, body: Mapping[str, Any]) -> str:
        """A request's body → the answer."""
        asked = "\n".join(content_text(message["content"]) for message in body["messages"])
        if body["model"] == "scripted":
            return "done"
        self.reflections += 1
        text = f"{SEED} Hint {next(self._numbers)}."
        return f"<prompt>{text}</prompt>" if "<prompt>" in asked else text


async def our_loop(rounds: int = OUR_ROUNDS) -> dict[str, Any]:
    """From the call of ``optimise`` to its return, its store and its held-out test included; the first call of a process
    pays for imports besides.
    """
    answers = InstantModel()
    with tempfile.TemporaryDirectory() as folder, ScriptedModel(answers) as model:
        path = Path(folder)
        tasks = [Task(f"{split}-{n}", f"{split} {n}", split=split) for split in ("train", "val") for n in range(4)]
        tasks.append(Task("test-0", "test 0", split="test"))
        settings = {"beam": 2, "branch": 2, "rounds": rounds, "gradient_batch": 2, "validation_batch": 4}
        config = OptimizeConfig.model_validate(
            {
                "name": "loop",
                "dataset": write_tasks(tasks, path),
                "prompts": {"solver": {"text": SEED}},
                "optimiser": {"apo": settings},
                "reflection": {"base_url": model.base_url, "model": "reflecting"},
                "budget": {"rollouts": 1000},
                "selection": {"test_samples": 1},
            }
        )
        coterie.instrument()
        began = time.perf_counter()
        try:
            await optimise(_solver(model.base_url), config, folder=path, work=path / "run", progress=Quiet())
        finally:
            coterie.uninstrument()
            await close_client(model.base_url)
        seconds = time.perf_counter() - began
        return {"calls": len(model.requests), "reflections": answers.reflections, "seconds": round(seconds, 3)}


def peer_loop(python: str) -> dict[str, Any]:
    """The peer's tuner, in an environment of its own, against the same model; its imports are not counted."""
    answers = InstantModel()
    with ScriptedModel(answers) as model:
        command = [python, str(PEER), "--base-url", model.base_url, "--rounds", str(ROUNDS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            sys.exit(f"The peer gave no figures:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        figures: dict[str, Any] = json.loads(lines[-1])
        return {"calls": len(model.requests), "reflections": answers.reflections, **figures}


def _solver(base_url: str) -> RolloutFunction[..., object]:
    @coterie.rollout
    async def solver(task: Task) -> float:
        await ask(client_of(base_url), "solver", SEED, str(task.input))
        return 0.5

    return solver
