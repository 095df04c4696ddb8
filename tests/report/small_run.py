"""A store filled by hand with a small run whose figures are known."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from coterie import conventions as c
from coterie.store.base import Store
from coterie.vocabulary import (
    AttemptState,
    Decision,
    FailureCause,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    Reward,
    Rollout,
    Run,
    RunState,
    Span,
    Task,
)

RUN = "run-one"
NASTY = "<script>alert(1)</script> [bold red]& \x1b[31m\u202eSELECT"
"""Model text that would break a page, rich markup or a terminal."""
WON = {
    ("before", "sampled"): {"t0": (0, 0), "t1": (1, 0), "t2": (0, 0), "t3": (1, 1)},
    ("before", "greedy"): {"t0": (0,), "t1": (0,), "t2": (0,), "t3": (1,)},
    ("after", "sampled"): {"t0": (1, 1), "t1": (1, 1), "t2": (0, 0), "t3": (1, 1)},
    ("after", "greedy"): {"t0": (1,), "t1": (1,), "t2": (0,), "t3": (1,)},
}
"""(evaluation, decoding) → task → success of each rollout."""
Fill = Callable[..., Awaitable[Path]]


async def fill_store(store: Store, *, state: RunState, evaluations: Sequence[str], run_id: str) -> None:
    await store.save_run(Run(run_id, "train", "demo <b>", {"app": "app.py:team", "seed": 7}, state=state))
    await store.add_tasks(
        [
            Task(
                f"t{n}",
                {"question": f"How many? {NASTY}"},
                reference={"sql": "SELECT 1"},
                split="test",
                metadata={"family": "joins" if n >= 2 else "filters", "difficulty": 2 if n >= 2 else 1},
            )
            for n in range(4)
        ]
    )
    await store.add_metrics(
        [
            Metrics(
                run_id,
                step,
                {
                    "success": 0.2 * step,
                    "mismatch_max": 0.001 * step,
                    "mismatch_kl": 1e-6,
                    "step_seconds": 2.0,
                    "rollout_seconds": 1.2,
                    "train_seconds": 0.5,
                    "sync_seconds": 0.1,
                    "calls/coder": 10,
                    "calls/reviewer": 4,
                    "untrainable": 1 if step == 2 else 0,
                    "rows": 0 if step == 3 else 9,
                    "tokens": 100,
                },
            )
            for step in (1, 2, 3, 4)
        ]
    )
    await store.add_metrics([Metrics(run_id, step, {"success": 0.15 * step}, stage="val") for step in (2, 4)])
    for evaluation, decoding in WON:
        if evaluation in evaluations:
            for task, wins in WON[evaluation, decoding].items():
                for number, won in enumerate(wins):
                    # A task that the team lost after training died once instead of giving reward 0.
                    dies = (evaluation, decoding, task, number) == ("after", "sampled", "t2", 1)
                    await _rollout(store, run_id, task, won, evaluation, decoding, number, dies=dies)
    if state is RunState.SUCCEEDED:
        await store.publish(
            Resource("weights/team", ResourceKind.WEIGHTS, {"path": "/models/team", "step": 4}, author=run_id)
        )
        await store.add_decision(Decision(run_id, "promoted", "policy team of step 4", {"validation": 0.6}))


async def _rollout(
    store: Store, run_id: str, task: str, won: int, evaluation: str, decoding: str, number: int, *, dies: bool
) -> None:
    rollout = Rollout(
        task,
        mode=Mode.TEST,
        id=f"{run_id}-{evaluation}-{decoding}-{task}-{number}",
        run_id=run_id,
        metadata={"evaluation": evaluation, "decoding": decoding},
    )
    await store.enqueue([rollout])
    [lease] = await store.lease("worker", run_id=run_id)
    attempt = lease.attempt.id
    if dies:
        await store.finish(
            attempt, AttemptState.FAILED, cause=FailureCause.ERROR, error="Traceback\nValueError: no such table"
        )
        return
    text = f"{evaluation} {NASTY}"
    await store.finish(
        attempt,
        AttemptState.SUCCEEDED,
        warnings=["no trainable call: was the framework instrumented?"] if number else [],
        spans=[_call(rollout.id, attempt, "coder", 0, text), _call(rollout.id, attempt, "reviewer", 1, "ok")],
        rewards=[
            Reward(rollout.id, attempt, float(won)),
            Reward(rollout.id, attempt, 0.25 if evaluation == "before" else 0.75, role="coder"),
            Reward(rollout.id, attempt, 5.0, name="style"),
        ],
    )


def _call(rollout_id: str, attempt_id: str, role: str, index: int, text: str) -> Span:
    attributes: Mapping[str, object] = {
        c.OPERATION: c.CHAT,
        c.AGENT_NAME: role,
        c.ROLE: role,
        c.AGENT_PATH: role,
        c.TURN: 0,
        c.CALL_ID: f"{attempt_id}-{index}",
        c.INPUT_MESSAGES: json.dumps([{"role": "user", "content": "?"}]),
        c.OUTPUT_MESSAGES: json.dumps([{"role": "assistant", "content": text}]),
    }
    number = abs(hash((attempt_id, index)))
    return Span(
        trace_id=f"{number % 16**32:032x}",
        span_id=f"{number % 16**16:016x}",
        name="chat",
        start_ns=10 + index,
        end_ns=11 + index,
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        attributes=attributes,
    )
