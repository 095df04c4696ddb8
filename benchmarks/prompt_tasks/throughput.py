"""How well a study fills its slots: many evaluations at once against a model that takes its time to answer.

A rollout is a team of one or two roles, a call each, so the ideal is rounds of all slots × calls × the model's time. A round is a
candidate on as many tasks as there are slots; nothing comes from the cache. Measured inside the study, around ``evaluate``. The team
alone, the same calls by the same client without Coterie, shows what the client and the machine allow.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import Task
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.run import optimise
from coterie_trainers.prompts.study import Candidate, Study
from prompt_tasks.model_process import slow_model
from prompt_tasks.planted import ask, client_of, close_client
from prompt_tasks.running import Quiet, write_tasks

ROLES = ("first", "second")
PROMPT = "You are the {role} agent."


async def measure(
    *, roles: int, at_once: int, answer_seconds: float, rounds: int, folder: Path | None
) -> dict[str, Any]:
    """The figures of one kind of team: ``rounds`` candidates, all asked for at once, on ``at_once`` tasks each."""
    names = ROLES[:roles]
    search = _FullSlots(rounds)
    with tempfile.TemporaryDirectory(dir=folder) as work, slow_model(answer_seconds) as base_url:
        path = Path(work)
        tasks = [Task(f"train-{number}", "train", split="train") for number in range(at_once)]
        tasks += [Task("val-0", "val", split="val"), Task("test-0", "test", split="test")]
        config = OptimizeConfig.model_validate(
            {
                "name": "throughput",
                "dataset": write_tasks(tasks, path),
                "prompts": {name: {"text": PROMPT.format(role=name)} for name in names},
                "optimiser": "unchanged",
                "budget": {"rollouts": 100 + at_once * (rounds + 1)},
                "selection": {"test_samples": 1},
                "runner": {"where": "here", "concurrency": at_once},
            }
        )
        try:
            alone = await _alone(base_url, names, at_once, rounds)
            coterie.instrument()
            team = _team(base_url, names)
            await optimise(team, config, folder=path, work=path / "run", progress=Quiet(), optimiser=search)
        finally:
            coterie.uninstrument()
            await close_client(base_url)
    ideal = rounds * roles * answer_seconds
    return {
        "roles": roles,
        "at_once": at_once,
        "answer_ms": 1000 * answer_seconds,
        "rollouts": at_once * rounds,
        "ideal_seconds": round(ideal, 3),
        "seconds": round(search.seconds, 3),
        "share_of_ideal": round(ideal / search.seconds, 4),
        "alone_seconds": round(alone, 3),
    }


class _FullSlots:
    """An optimiser that only measures: one round to warm up, then the clock runs."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seconds = 0.0

    async def __call__(self, study: Study) -> Sequence[Candidate]:
        """No finalist."""
        await self._evaluate(study, range(1))
        began = time.perf_counter()
        await self._evaluate(study, range(1, self.rounds + 1))
        self.seconds = time.perf_counter() - began
        return []

    async def _evaluate(self, study: Study, numbers: Sequence[int]) -> None:
        candidates = [
            Candidate({name: f"{text} Hint {number}." for name, text in study.seed.texts.items()}) for number in numbers
        ]
        await asyncio.gather(*(study.evaluate(candidate, study.train) for candidate in candidates))


def _team(base_url: str, names: Sequence[str]) -> RolloutFunction[..., object]:
    @coterie.rollout
    async def team(task: Task) -> float:
        await _calls(base_url, names, str(task.input))
        return 1.0

    return team


async def _calls(base_url: str, names: Sequence[str], text: str) -> None:
    for name in names:
        await ask(client_of(base_url), name, PROMPT.format(role=name), text)


async def _alone(base_url: str, names: Sequence[str], at_once: int, rounds: int) -> float:
    """Seconds that the same calls take without Coterie, after a round to warm up."""

    async def slot(rounds: int) -> None:
        for _ in range(rounds):
            await _calls(base_url, names, "train")

    await asyncio.gather(*(slot(1) for _ in range(at_once)))
    began = time.perf_counter()
    await asyncio.gather(*(slot(rounds) for _ in range(at_once)))
    return time.perf_counter() - began
