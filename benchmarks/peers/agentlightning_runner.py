"""agentlightning's runners at the same work as ``benchmarks/runner.py``; run with a Python that has it.

Its trainer as it comes: a store server, and each runner in a process of its own; its light tracer.

python benchmarks/peers/agentlightning_runner.py --rollouts N --slots N --seconds S --idle N
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
FIRST_LINES = Path(os.environ.setdefault("FIRST_LINES", tempfile.mkdtemp()))


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.35)
    parser.add_argument("--idle", type=int, default=5)
    given = parser.parse_args()

    import agentlightning as agl

    logging.getLogger("agentlightning").setLevel(logging.ERROR)

    @agl.rollout
    async def sleeps(task: dict[str, Any], prompt_template: agl.PromptTemplate) -> float:  # noqa: ARG001 - it must be there
        first_line = time.time_ns()
        (FIRST_LINES / task["name"]).write_text(str(first_line))
        await asyncio.sleep(task["seconds"])
        return 1.0

    @agl.algo
    async def measure(*, store: agl.LightningStore, **_: Any) -> None:
        await store.add_resources({"prompt": agl.PromptTemplate(template="", engine="f-string")})
        await ended(store, ["warm-up"] * given.slots, given.seconds)
        delays = []
        for number in range(given.idle):
            await asyncio.sleep(0.5)
            began = time.time_ns()
            await ended(store, [f"idle-{number}"], 0.0)
            delays.append((int((FIRST_LINES / f"idle-{number}").read_text()) - began) / 1e6)
        began_at = time.perf_counter()
        await ended(store, [f"many-{number}" for number in range(given.rollouts)], given.seconds)
        took = time.perf_counter() - began_at
        ideal = given.rollouts * given.seconds / given.slots
        print(
            json.dumps(
                {
                    "enqueue_to_first_line_ms_p50": round(statistics.median(delays), 1),
                    "enqueue_to_first_line_ms_max": round(max(delays), 1),
                    "rollouts_per_s": round(given.rollouts / took, 2),
                    "share_of_ideal": round(ideal / took, 4),
                }
            ),
            flush=True,
        )

    async def ended(store: agl.LightningStore, names: list[str], seconds: float) -> None:
        rollouts = [await store.enqueue_rollout(input={"name": name, "seconds": seconds}) for name in names]
        left = [rollout.rollout_id for rollout in rollouts]
        while left:
            done = await store.wait_for_rollouts(rollout_ids=left, timeout=0.05)
            left = [id_ for id_ in left if id_ not in {rollout.rollout_id for rollout in done}]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = agl.Trainer(n_runners=given.slots, algorithm=measure, tracer=agl.OtelTracer(), port=port)
    trainer.fit(sleeps)


if __name__ == "__main__":
    main()
