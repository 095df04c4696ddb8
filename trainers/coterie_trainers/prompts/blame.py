"""Blame: which role most likely lost a task, as shares of what was lost.

For each role that acted, with loss(r) = (high - r) / (high - low) for a reward r within the range of the score::

    evidence = mean loss of the rewards bound to the role, if there are any
               else max over the later roles that its words reached:  loss of their rewards · 1/2^steps
             + 1     if one of its calls or tools failed
             + 1/2   if the explanation of a reward that is not its own names it
             + FLOOR
    blame    = loss of the team's score · evidence / sum of all roles' evidence

Why: a role that is judged well by itself is rarely the one to change; one that nobody judges, and whose words others failed on,
often is; and nobody is free of doubt, so that a wrong judge hides no role for ever.

Source: node scores and downstream blames of MAPRO, arXiv 2510.07475. Where we depart: a model judges there, at the cost of a
call an edge; here it is what rewards, errors and explanations already say. With a reward for the team alone, and no failed
call, all roles that acted share equally.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from coterie.episodes import Episode, Turn
from coterie_trainers.prompts.feedback import role_of_reward
from coterie_trainers.prompts.reach import reached
from coterie_trainers.prompts.study import Trial

FLOOR = 0.05
"""Evidence against every role that acted."""


def blame(
    trial: Trial, episode: Episode, roles: Sequence[str], score_range: tuple[float, float] = (0.0, 1.0)
) -> Mapping[str, float]:
    """Role → its part of what the team lost, 0 for a role that did not act. The sum is 0 for the best score, 1 for the least.

    Where none of these roles acted, the loss is shared equally: the first of them may be why.

    Args:
        trial: How the rollout ended.
        episode: What happened in it.
        roles: Those to choose among.
        score_range: The least and the largest score.
    """
    lost = _loss(trial.score, score_range)
    acted = [role for role in dict.fromkeys(roles) if role in episode.roles] or list(dict.fromkeys(roles))
    evidence = {role: _evidence(role, episode, score_range) for role in acted}
    whole = sum(evidence.values())
    return {role: lost * evidence[role] / whole if role in evidence else 0.0 for role in roles}


def _evidence(role: str, episode: Episode, score_range: tuple[float, float]) -> float:
    own = _judged(role, None, episode, score_range)
    failed = any(turn.role == role and turn.error is not None for turn in episode.turns) or any(
        call.role == role and call.error is not None for call in episode.tool_calls
    )
    return (
        (_downstream(role, episode, score_range) if own is None else own) + failed + _named(role, episode) / 2 + FLOOR
    )


def _downstream(role: str, episode: Episode, score_range: tuple[float, float]) -> float:
    losses = [0.0]
    for way in reached(episode, role):
        judged = 1.0 if way.turn.error is not None else _judged(way.turn.role, way.turn, episode, score_range)
        losses.append((judged or 0.0) / 2**way.steps)
    return max(losses)


def _judged(role: str, turn: Turn | None, episode: Episode, score_range: tuple[float, float]) -> float | None:
    """The mean loss of a role's own rewards; with a turn, of those that are not bound to another of its calls."""
    low, high = score_range
    losses = [
        _loss(reward.value, score_range)
        for reward in episode.rewards
        if low <= reward.value <= high
        and role_of_reward(reward, episode) == role
        and (turn is None or reward.call_id in (None, turn.call_id))
    ]
    return fmean(losses) if losses else None


def _named(role: str, episode: Episode) -> bool:
    name = re.compile(rf"(?<!\w){re.escape(role)}(?!\w)", re.IGNORECASE)
    return any(
        name.search(reward.explanation) is not None
        for reward in episode.rewards
        if reward.explanation and role_of_reward(reward, episode) != role
    )


def _loss(value: float, score_range: tuple[float, float]) -> float:
    low, high = score_range
    return min(max((high - value) / (high - low), 0.0), 1.0)
