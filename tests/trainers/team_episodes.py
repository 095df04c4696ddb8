"""Episodes, turns and rewards for the trainers' tests, with everything that a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.episodes import Episode, Turn
from coterie.vocabulary import Reward


def turn(
    role: str = "coder",
    *,
    call_id: str = "call-0",
    path: str | None = None,
    index: int = 0,
    prompt: Sequence[int] | None = (1, 2, 3),
    response: Sequence[int] | None = (4, 5),
    logprobs: Sequence[float] | None = None,
    policy: str | None = "team",
    version: int | None = 1,
    start_ns: int = 0,
    invocation: str | None = None,
) -> Turn:
    if logprobs is None and response is not None:
        logprobs = [-0.5 - 0.01 * place for place in range(len(response))]
    return Turn(
        call_id=call_id,
        agent=role,
        role=role,
        agent_path=path if path is not None else role,
        index=index,
        messages=[],
        text="",
        output=[],
        prompt_ids=None if prompt is None else tuple(prompt),
        response_ids=None if response is None else tuple(response),
        logprobs=None if logprobs is None else tuple(logprobs),
        policy=policy,
        policy_version=version,
        prompt_name=None,
        prompt_version=None,
        model="m",
        finish_reason="stop",
        error=None,
        start_ns=start_ns,
        end_ns=start_ns + 1,
        invocation=invocation,
    )


def episode(
    turns: Sequence[Turn], rewards: Sequence[Reward] = (), *, rollout: str = "ro-1", task: str = "task-1"
) -> Episode:
    return Episode(rollout_id=rollout, attempt_id=f"at-{rollout}", task_id=task, turns=turns, rewards=rewards)


def reward(
    value: float,
    *,
    rollout: str = "ro-1",
    name: str = "reward",
    role: str | None = None,
    path: str | None = None,
    call: str | None = None,
) -> Reward:
    return Reward(
        rollout_id=rollout,
        attempt_id=f"at-{rollout}",
        value=value,
        name=name,
        role=role,
        agent_path=path,
        call_id=call,
    )
