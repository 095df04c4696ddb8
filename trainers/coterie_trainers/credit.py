"""Credit: which reward counts for which turn.

    reward of a turn = team · (sum of the rewards bound to the rollout)
                     + local · (sum of the rewards bound to its call, else to its agent path, else to its role)
                     + what the shapers add (``shaping/``)

A reward reaches exactly the turns it names: two workers that run in parallel, even under one role, never get each other's.
A role or path may be silent in one episode (a reviewer that was not reached) and its reward there credits nobody. One that is
silent in every episode is a misspelt name, and an error: a reward that is silently dropped looks like a reward of 0. So
is a call id that is not in its episode.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coterie.episodes import Episode, Turn
from coterie.errors import ConfigError, RewardError
from coterie.interfaces import RewardShaper, Sample, TurnReward
from coterie.vocabulary import Reward
from coterie_trainers.chains import ends


@dataclass(frozen=True, slots=True)
class Credit:
    """How rewards become the reward of a turn."""

    team: float = 1.0
    """Weight of the rewards bound to the rollout: what the team achieved."""
    local: float = 1.0
    """Weight of the rewards bound to the turn itself."""
    name: str = "reward"
    """The rewards that count; those of other names are for the report, or for shapers."""
    range: tuple[float, float] | None = None
    """The least and the largest that a reward may be; None for anything finite."""
    shapers: Mapping[str, RewardShaper] = field(default_factory=dict)
    """Name → what adds to the rewards, in order."""

    def __post_init__(self) -> None:
        for name, value in (("team", self.team), ("local", self.local)):
            if not math.isfinite(value):
                raise ConfigError(f"credit.{name} is {value}; it must be a finite number.")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ConfigError(f"credit.range is {list(self.range)}; it must be two finite numbers, the smaller first.")


@dataclass(frozen=True, slots=True)
class CreditedTurn:
    """A turn with the reward that counts for it."""

    sample: Sample
    """What an advantage estimator sees."""
    turn: Turn
    episode: Episode


def credited_turns(episodes: Sequence[Episode], credit: Credit) -> list[CreditedTurn]:
    """Every turn of every episode with its reward, in the order of the episodes and of their turns.

    Raises:
        RewardError: an episode has no reward of this name; a reward is not finite, lies outside the range, belongs to another
            attempt, or is bound to a call that its episode has not, or to an agent path or role that made no call in
            any of the episodes; a rollout is given twice; or a shaper cannot do its work.
    """
    _check_one_episode_a_rollout(episodes)
    _check_names(episodes, credit.name)
    return [
        CreditedTurn(_sample(episode, turn, rewards, step), turn, episode)
        for episode in episodes
        for step, (turn, rewards) in enumerate(zip(episode.turns, turn_rewards(episode, credit), strict=True))
    ]


def turn_rewards(episode: Episode, credit: Credit) -> list[TurnReward]:
    """The rewards of each turn of an episode, in order.

    Raises:
        RewardError: as ``credited_turns``, but for names of roles and paths, which one episode cannot tell.
    """
    rewards = _counting_rewards(episode, credit)
    team = 0.0
    by_call: dict[str, float] = defaultdict(float)
    by_path: dict[str, float] = defaultdict(float)
    by_role: dict[str, float] = defaultdict(float)
    for reward in rewards:
        if reward.call_id is not None:
            by_call[reward.call_id] += reward.value
        elif reward.agent_path is not None:
            by_path[reward.agent_path] += reward.value
        elif reward.role is not None:
            by_role[reward.role] += reward.value
        else:
            team += reward.value
    _check_bound(episode, "call", by_call, [turn.call_id for turn in episode.turns])

    last = ends(episode.turns)
    outcome_T, step_T = [], []
    for place, turn in enumerate(episode.turns):
        local = by_call.get(turn.call_id, by_path.get(turn.agent_path, by_role.get(turn.role, 0.0)))
        outcome_T.append(credit.team * team + credit.local * local)
        step_T.append(outcome_T[-1] if place in last else credit.local * by_call.get(turn.call_id, 0.0))
    for name, shaper in credit.shapers.items():
        for place, added in enumerate(_shaped(name, shaper, episode)):
            outcome_T[place] += added.outcome
            step_T[place] += added.step
    return [
        TurnReward(_finite(outcome, turn, episode), _finite(step, turn, episode))
        for turn, outcome, step in zip(episode.turns, outcome_T, step_T, strict=True)
    ]


def where(episode: Episode) -> str:
    """How errors name an episode."""
    return f"Attempt {episode.attempt_id} of rollout {episode.rollout_id}"


def _sample(episode: Episode, turn: Turn, rewards: TurnReward, step: int) -> Sample:
    return Sample(
        task_id=episode.task_id,
        rollout_id=episode.rollout_id,
        role=turn.role,
        agent_path=turn.agent_path,
        turn=turn.index,
        reward=rewards.outcome,
        state_key=turn.state_key,
        step=step,
        invocation=turn.invocation,
        step_reward=rewards.step,
    )


def _shaped(name: str, shaper: RewardShaper, episode: Episode) -> Sequence[TurnReward]:
    added = shaper(episode)
    if len(added) != len(episode.turns):
        raise RewardError(
            f"{where(episode)}: shaper {name!r} gave {len(added)} additions for {len(episode.turns)} turns. It must give "
            "one a turn, in order."
        )
    for turn, each in zip(episode.turns, added, strict=True):
        if not (math.isfinite(each.outcome) and math.isfinite(each.step)):
            raise RewardError(
                f"{where(episode)}: shaper {name!r} adds {each.outcome} (with the turn {each.step}) to call "
                f"{turn.call_id} of role {turn.role!r}; it must be a finite number."
            )
    return added


def _counting_rewards(episode: Episode, credit: Credit) -> list[Reward]:
    name = credit.name
    rewards = [reward for reward in episode.rewards if reward.name == name]
    if not rewards:
        others = sorted({reward.name for reward in episode.rewards})
        raise RewardError(
            f"{where(episode)} has no reward named {name!r}"
            + (f" (it has: {', '.join(others)}). " if others else ". ")
            + "Return a number from the rollout function, or {role: number}, or call coterie.reward(...) in it."
        )
    for reward in rewards:
        if not math.isfinite(reward.value):
            raise RewardError(
                f"{where(episode)}: reward {reward.id} of {reward.source!r} is {reward.value}, which is no finite number."
            )
        if credit.range is not None and not credit.range[0] <= reward.value <= credit.range[1]:
            raise RewardError(
                f"{where(episode)}: reward {reward.id} of {reward.source!r} is {reward.value:g}, outside of credit.range "
                f"[{credit.range[0]:g}, {credit.range[1]:g}]. Mend who gives it, or widen the range."
            )
        if (reward.rollout_id, reward.attempt_id) != (episode.rollout_id, episode.attempt_id):
            raise RewardError(
                f"{where(episode)} holds reward {reward.id}, which belongs to attempt {reward.attempt_id} "
                f"of rollout {reward.rollout_id}."
            )
    return rewards


def _check_names(episodes: Sequence[Episode], name: str) -> None:
    """Every role and agent path that a reward names acts in at least one episode."""
    roles = {turn.role for episode in episodes for turn in episode.turns}
    paths = {turn.agent_path for episode in episodes for turn in episode.turns}
    for episode in episodes:
        rewards = [reward for reward in episode.rewards if reward.name == name and reward.call_id is None]
        by_path = {reward.agent_path: reward.value for reward in rewards if reward.agent_path is not None}
        by_role = {
            reward.role: reward.value for reward in rewards if reward.agent_path is None and reward.role is not None
        }
        _check_bound(episode, "agent path", by_path, sorted(paths))
        _check_bound(episode, "role", by_role, sorted(roles))


def _check_bound(episode: Episode, kind: str, bound: Mapping[str, float], present: Sequence[str]) -> None:
    """A reward must name something that made a call."""
    lost = sorted(set(bound) - set(present))
    if lost:
        there = ", ".join(map(repr, sorted(set(present)))) or "none: no LLM call was recorded"
        raise RewardError(
            f"{where(episode)}: a reward is bound to {kind} {lost[0]!r}, which made no call. "
            f"What made one: {there}. Bind the reward to one of these, or leave it out for this attempt."
        )


def _finite(value: float, turn: Turn, episode: Episode) -> float:
    if not math.isfinite(value):
        raise RewardError(
            f"{where(episode)}: the rewards of call {turn.call_id} add up to {value}. Use rewards of a smaller scale."
        )
    return value


def _check_one_episode_a_rollout(episodes: Sequence[Episode]) -> None:
    attempts: dict[str, str] = {}
    for episode in episodes:
        if episode.rollout_id in attempts:
            raise RewardError(
                f"Rollout {episode.rollout_id} is given twice: attempts {attempts[episode.rollout_id]} and "
                f"{episode.attempt_id}. A rollout counts once: give only the attempt that succeeded."
            )
        attempts[episode.rollout_id] = episode.attempt_id
