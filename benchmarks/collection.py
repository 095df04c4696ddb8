"""How many rollouts a second are trained, synchronously and asynchronously, when they are of very different length.

python benchmarks/collection.py [--steps N] [--slots N] [--mean S] [--update S] [--staleness LIST] [--json FILE]

The whole loop of ``coterie train`` with a store (SQLite) and a runner in this process; only the model and the trainer are
scripted: a rollout sleeps and notes two calls, an update takes a fixed time. All runs play the very same rollouts. The ideal is
where neither the runner's slots nor the trainer ever waits: the longer of (sum of all lengths / slots) and (steps × update).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facts.machine import machine

import coterie
from coterie import conventions as c
from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.scope import current_scope
from coterie.vocabulary import Endpoint, Span, Task, new_id, now_ns
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop_run
from coterie_trainers.progress import Progress

TASKS, GROUP = 8, 4
"""Groups of a step, and rollouts of a group."""

Lengths = Callable[[random.Random], float]
LENGTHS: Mapping[str, Lengths] = {
    "equal": lambda _: 1.0,
    "log-normal": lambda draw: draw.lognormvariate(-0.5, 1.0),
    "pareto": lambda draw: min(draw.paretovariate(1.5) / 3.0, 10.0),
}
"""Name → lengths of mean 1. Pareto's, with exponent 1.5, is cut at 10, as a deadline would, and so a little less: 0.88."""

APP = "from __main__ import team"


class ScriptedBackend:
    """An update takes a fixed time; a version is a number."""

    def __init__(self, update_seconds: float) -> None:
        self.update_seconds = update_seconds
        self.version = 0

    async def serve(self) -> Mapping[str, Endpoint]:
        return {"team": Endpoint("http://127.0.0.1:9/v1", "scripted", "team")}

    async def update(self, policy: str, rows: Sequence[TrainingRow], **_settings: float) -> PolicyUpdate:
        await asyncio.sleep(self.update_seconds)
        return PolicyUpdate(policy, len(rows), 1, {"loss": 0.0, "grad_norm": 1.0})

    async def publish(self, _policy: str) -> int:
        self.version += 1
        return self.version

    async def save(self, folder: Path) -> Mapping[str, int]:
        (folder / "team" / "model").mkdir(parents=True)
        return {"team": self.version}

    async def load(self, _folder: Path) -> Mapping[str, int]:
        return {"team": self.version}

    async def close(self) -> None: ...


@dataclass
class Play:
    """What the rollouts of the run under way need to know."""

    lengths: Lengths
    mean: float
    backend: ScriptedBackend
    played: Counter[str] = field(default_factory=Counter)
    """Task → its rollouts so far."""
    slept: float = 0.0


PLAY = Play(LENGTHS["equal"], 1.0, ScriptedBackend(0.0))


class Silent(Progress):
    """Nobody is told."""

    def warn(self, text: str) -> None:
        raise RuntimeError(text)


def note_call(number: int) -> None:
    """Record a call of two tokens, as capture does, by the weights that are served now."""
    scope = current_scope()
    assert scope is not None
    now = now_ns()
    attributes = {
        c.OPERATION: c.CHAT,
        c.AGENT_NAME: "solver",
        c.ROLE: "solver",
        c.AGENT_PATH: "solver",
        c.CALL_ID: new_id("ca"),
        c.TURN: number,
        c.POLICY_NAME: "team",
        c.POLICY_VERSION: PLAY.backend.version,
        c.PROMPT_TOKENS: [1, 2],
        c.RESPONSE_TOKENS: [3, 4],
        c.LOGPROBS: [-0.5, -0.5],
    }
    ids = {"rollout_id": scope.rollout_id, "attempt_id": scope.attempt_id}
    scope.sink.add_span(
        Span(random.randbytes(16).hex(), random.randbytes(8).hex(), "chat", now, now, **ids, attributes=attributes)
    )


@coterie.rollout
async def team(task: Task, mode: str) -> float:
    """A call, a sleep as long as the task's so-many-eth rollout takes, a call."""
    if mode != "train":
        return 1.0
    number = PLAY.played[task.id]
    PLAY.played[task.id] += 1
    seconds = PLAY.mean * PLAY.lengths(random.Random(f"{task.id}/{number}"))
    PLAY.slept += seconds
    note_call(0)
    await asyncio.sleep(seconds)
    note_call(1)
    return float(number % 2)


async def measure(lengths: str, collection: Mapping[str, Any], given: argparse.Namespace) -> dict[str, float]:
    """The figures of one run."""
    global PLAY
    PLAY = Play(LENGTHS[lengths], given.mean, ScriptedBackend(given.update))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        for split, count in (("train", 64), ("val", 1), ("test", 1)):
            lines = [json.dumps({"id": f"{split}-{n}", "input": n}) for n in range(count)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        config = TrainConfig.model_validate(
            {
                "name": "collection",
                "dataset": {split: f"{split}.jsonl" for split in ("train", "val", "test")},
                "policies": {"team": {"model": "scripted"}},
                "training": {
                    "steps": given.steps,
                    "tasks_per_step": TASKS,
                    "rollouts_per_task": GROUP,
                    "checkpoint_every": given.steps,
                    **collection,
                },
                "evaluation": {"every": given.steps, "test_samples": 1},
                "runner": {"concurrency": given.slots, "deadline_seconds": 600},
            }
        )
        loop_run.make_backend = lambda *_: PLAY.backend
        run = await loop_run.train("app.py:team", config, folder=folder, work=folder / "work", progress=Silent())
        async with coterie.connect(str(folder / "work" / "store.db")) as store:
            rows = [row.values for row in await store.get_metrics(run.id, stage="train")]
    took = sum(row["seconds"] - row["save_seconds"] for row in rows)
    trained = sum(row["rollouts"] for row in rows)
    ideal = max(PLAY.slept / given.slots, given.steps * given.update)
    ages = [row["staleness"] for row in rows]
    return {
        "rollouts_per_s": round(trained / took, 2),
        "share_of_ideal": round(ideal / took, 4),
        "trainer_waits": round(sum(row["rollout_seconds"] for row in rows) / took, 4),
        "staleness_mean": round(math.fsum(ages) / len(ages), 3),
        "staleness_max": max(row["staleness_max"] for row in rows),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=32, help=f"of {TASKS} groups of {GROUP} rollouts")
    parser.add_argument("--slots", type=int, default=32, help="rollouts that are played at once")
    parser.add_argument("--mean", type=float, default=0.5, help="mean length of a rollout, in seconds")
    parser.add_argument("--update", type=float, default=0.25, help="seconds of an update")
    parser.add_argument("--staleness", default="1,2,4,8", help="bounds on staleness to measure")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {"sync": {"collection": "sync"}}
    ways |= {f"async {s}": {"collection": "async", "max_staleness": int(s)} for s in given.staleness.split(",")}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for lengths in LENGTHS:
        figures[lengths] = {}
        for way, collection in ways.items():
            found = figures[lengths][way] = asyncio.run(measure(lengths, collection, given))
            print(
                f"{lengths:11s} {way:8s} {found['rollouts_per_s']:7.2f} rollouts/s, {found['share_of_ideal']:6.1%} of the "
                f"ideal; the trainer waits {found['trainer_waits']:6.1%} of the time; staleness {found['staleness_mean']:.2f}, "
                f"at most {found['staleness_max']:.0f}",
                flush=True,
            )
    if given.json:
        sizes = {name: getattr(given, name) for name in ("steps", "slots", "mean", "update")}
        given.json.write_text(json.dumps({"figures": figures, "sizes": sizes, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
