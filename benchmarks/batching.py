"""How long episodes at hand take to become a training batch: credited turns → advantages → rows; and how memory grows.

python benchmarks/batching.py [--episodes N] [--turns N] [--tokens N] [--rounds N] [--json FILE]

Two shapes. ``apart``: every turn has a prompt of its own (two thirds of its tokens) and becomes a row. ``continued``: an agent with
a history, whose prompts begin with all that was before; its turns become one row, and a prompt of the 30th turn holds all
tokens of the 29 before it, so that an episode's prompts are 15 times as long in sum as its row. A tenth of the episodes is taken
there. Times are seconds of the processor, the best of ``--rounds``; memory is the peak of what is allocated on the way and the batch itself, by
``tracemalloc``, in a round of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from facts.machine import machine

from coterie.episodes import Episode, Turn
from coterie.vocabulary import Reward
from coterie_trainers import advantages
from coterie_trainers.batches import Batch, build_batch
from coterie_trainers.credit import Credit, credited_turns

GROUP = 8
"""Rollouts of a task."""
ROLES = ("manager", "worker")
"""They take turns."""


def turn(
    number: int, episode: int, role: str, prompt: Sequence[int], response: Sequence[int], draw: random.Random
) -> Turn:
    """A call as the store gives it back."""
    return Turn(
        call_id=f"call-{episode}-{number}",
        agent=role,
        role=role,
        agent_path=role,
        index=number,
        messages=(),
        text="",
        output=(),
        prompt_ids=tuple(prompt),
        response_ids=tuple(response),
        logprobs=tuple(-draw.random() for _ in response),
        policy="team",
        policy_version=1,
        prompt_name=None,
        prompt_version=None,
        model="m",
        finish_reason="stop",
        error=None,
        start_ns=number,
        end_ns=number + 1,
    )


def apart(episode: int, turns: int, tokens: int, draw: random.Random) -> list[Turn]:
    """Turns of two roles, each with a prompt of its own."""
    asked = tokens * 2 // 3
    return [
        turn(
            number // len(ROLES),
            episode,
            ROLES[number % len(ROLES)],
            [draw.randrange(150_000) for _ in range(asked)],
            [draw.randrange(150_000) for _ in range(tokens - asked)],
            draw,
        )
        for number in range(turns)
    ]


def continued(episode: int, turns: int, tokens: int, draw: random.Random) -> list[Turn]:
    """Turns of one role, each with all that was before in its prompt."""
    asked, history, made = tokens * 2 // 3, [], []
    for number in range(turns):
        history += [draw.randrange(150_000) for _ in range(asked)]
        response = [draw.randrange(150_000) for _ in range(tokens - asked)]
        made.append(turn(number, episode, ROLES[0], history, response, draw))
        history += response
    return made


SHAPES: dict[str, Callable[[int, int, int, random.Random], list[Turn]]] = {"apart": apart, "continued": continued}


def make_episodes(shape: str, count: int, given: argparse.Namespace) -> list[Episode]:
    """Episodes with a reward each, in groups of ``GROUP``."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        rollout, attempt = f"ro-{number}", f"at-{number}"
        rewards = (Reward(rollout, attempt, draw.random()),)
        turns = SHAPES[shape](number, given.turns, given.tokens, draw)
        made.append(Episode(rollout, attempt, f"task-{number // GROUP}", turns, rewards=rewards))
    return made


def batch_of(episodes: Sequence[Episode], laps: dict[str, float] | None = None) -> Batch:
    """The whole way, as the training loop goes it."""
    began = time.process_time()
    turns = credited_turns(episodes, Credit())
    credited = time.process_time()
    advantages_N = advantages.check("role")([each.sample for each in turns])
    estimated = time.process_time()
    batch = build_batch(turns, advantages_N, "team")
    if laps is not None:
        laps |= {"credit_s": credited - began, "advantages_s": estimated - credited}
        laps |= {"rows_s": time.process_time() - estimated}
    return batch


def measure(shape: str, count: int, given: argparse.Namespace) -> dict[str, float]:
    """The figures of one shape and number of episodes."""
    episodes = make_episodes(shape, count, given)
    best: dict[str, float] = {}
    for _ in range(given.rounds):
        gc.collect()
        laps: dict[str, float] = {}
        began = time.process_time()
        batch = batch_of(episodes, laps)
        laps["seconds"] = time.process_time() - began
        rows = sum(map(len, batch.rows.values()))
        best = min(best or laps, laps, key=lambda each: each["seconds"])
        del batch
    tracemalloc.start()
    kept = batch_of(episodes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return {name: round(value, 3) for name, value in best.items()} | {
        "episodes": count,
        "rows": rows,
        "kib_per_episode": round(peak / count / 1024, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=30, help="of an episode")
    parser.add_argument("--tokens", type=int, default=300, help="of a turn, prompt and response together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    for shape, whole in (("apart", given.episodes), ("continued", given.episodes // 10)):
        figures[shape] = []
        for count in (whole // 4, whole // 2, whole):
            found = measure(shape, count, given)
            figures[shape].append(found)
            print(
                f"{shape:9s} {count:5d} episodes, {found['rows']:6.0f} rows: {found['seconds']:6.3f} s (credit {found['credit_s']:.3f}, "
                f"advantages {found['advantages_s']:.3f}, rows {found['rows_s']:.3f}); {found['kib_per_episode']:7.1f} KiB an episode",
                flush=True,
            )
    if given.json:
        sizes = {name: getattr(given, name) for name in ("episodes", "turns", "tokens", "rounds")}
        given.json.write_text(json.dumps({"figures": figures, "sizes": sizes, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
