"""What did not come to its end: answers that were cut off at their token limit, rollouts that failed or ran too long.

Neither is trained on in silence: both are counted at every step (``cut``, ``failed``), and the section ``unfinished`` says what
they teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import Attempt, FailureCause, Reward, Rollout
from coterie_trainers.config import Unfinished
from coterie_trainers.credit import Credit, CreditedTurn, credited_turns

_OF_THE_TEAM = (FailureCause.ERROR, FailureCause.DEADLINE, FailureCause.BAD_REWARD)
"""Failures that the team brought about; a runner that was lost is none."""


def is_cut(turn: CreditedTurn) -> bool:
    """True for an answer that ended at its token limit."""
    return turn.turn.finish_reason == "length"


def penalised(turns: Sequence[CreditedTurn], settings: Unfinished) -> list[CreditedTurn]:
    """The turns, with the penalty taken off the reward of those that were cut off, if that is what they teach."""
    if settings.answers != "penalise":
        return list(turns)
    return [_with_less(turn, settings.answer_penalty) if is_cut(turn) else turn for turn in turns]


def masked(turns: Sequence[CreditedTurn], settings: Unfinished) -> frozenset[int]:
    """The places of turns that are compared with others but not trained on."""
    if settings.answers != "mask":
        return frozenset()
    return frozenset(place for place, turn in enumerate(turns) if is_cut(turn))


async def failed_turns(store: Store, failed: Sequence[Rollout], settings: Unfinished) -> list[CreditedTurn]:
    """The turns of rollouts that the team itself made fail, with the reward of a failure; none where failures are dropped."""
    if settings.rollouts != "penalise" or not failed:
        return []
    return credited_turns(await _failed_episodes(store, failed, settings.rollout_reward), Credit())


async def _failed_episodes(store: Store, failed: Sequence[Rollout], reward: float) -> list[Episode]:
    attempts = await store.get_attempts([rollout.id for rollout in failed])
    last = {rollout.id: _last_of_the_team(attempts.get(rollout.id, ())) for rollout in failed}
    spans = await store.get_spans([attempt.id for attempt in last.values() if attempt is not None])
    return [
        build_episode(
            rollout.task_id,
            attempt.id,
            rollout.id,
            spans.get(attempt.id, ()),
            # What it earned before it failed does not count.
            [Reward(rollout.id, attempt.id, reward)],
        )
        for rollout in failed
        if (attempt := last[rollout.id]) is not None
    ]


def _last_of_the_team(attempts: Sequence[Attempt]) -> Attempt | None:
    return next((attempt for attempt in reversed(attempts) if attempt.cause in _OF_THE_TEAM), None)


def _with_less(turn: CreditedTurn, penalty: float) -> CreditedTurn:
    sample = turn.sample
    step = None if sample.step_reward is None else sample.step_reward - penalty
    return replace(turn, sample=replace(sample, reward=sample.reward - penalty, step_reward=step))
