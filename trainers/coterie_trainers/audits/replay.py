"""``replay``: what one message is worth: where its rollout goes from it, less where it goes from other messages in its place.

For the calls 0 … n−1 of a rollout τ, by their start: the calls before s get their answers of then, s is sampled anew K
times, and the team goes on from each with the same policies. That gives K sibling messages at s, each with an outcome.

    value of the recorded message at s   = mean outcome of the replays at s+1, which have it in their past; of the last
                                           message the rollout's own outcome
    value of a sibling                   = its outcome
    credit of a message                  = its value − mean value of the other messages at s      (leave one out)

Why this baseline: siblings are drawn by the same policy in exactly the same situation, so what made the task easy or hard
up to there cancels, and the message itself has no part in what it is compared with: the credit is an unbiased estimate of
its advantage. The credits of all messages at s sum to zero, and those of the recorded messages along a rollout to its
outcome less the mean outcome of the task's replays from the start: the loss of a lost rollout is shared out among its
turns.

Over many rollouts the credits of a turn are 0 on the mean, whatever it does: the recorded message is one of its siblings.
What tells how much hangs on a turn is how much its messages *differ*: its **weight** is the part of the outcome's variance
that its message decides,

    weight of s = Var(outcome | calls before s) − Var(outcome | calls up to s)

by the law of total variance: weights of the turns sum to the variance of a task's outcome. Both variances are the unbiased
ones of the recorded outcome and its replays at s and at s+1.

Source: C3 (arXiv 2603.06859): freeze the context, sample alternatives, continue with fixed policies, leave one out.

Where we depart: the value of the recorded message is the mean over the replays that follow it, and leaves out the
rollout's own outcome unless nothing follows. So a turn that decides nothing gets 0 in lost rollouts too, where the
outcome's own bad luck would count against all turns before it. The weights are ours. The paper has two agents, one call
each; with parallel calls, "before" is by their start.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, variance

import numpy as np
from numpy.typing import NDArray

from coterie.episodes import Episode
from coterie.replays import Replay
from coterie.vocabulary import Rollout
from coterie_trainers.audits.playing import Wanted


def turn_replays(original: Rollout, episode: Episode, *, count: int) -> list[Wanted]:
    """The replays of one rollout: ``count`` from each of its calls.

    Args:
        original: the rollout.
        episode: what the team did in it.
        count: replays a call.
    """
    return [
        Wanted(original, Replay(original.id, episode.attempt_id, frozen), number)
        for frozen in range(len(episode.turns))
        for number in range(count)
    ]


def leave_one_out(values: Sequence[float]) -> NDArray[np.float64]:
    """Each value less the mean of the others: ``credits_K``, which sum to zero. A lone one gets 0."""
    values_K = np.asarray(values, dtype=np.float64)
    others = len(values_K) - 1
    return values_K - (values_K.sum() - values_K) / others if others > 0 else np.zeros(len(values_K))


def turn_credits(outcome: float, replays: Sequence[Sequence[float]]) -> list[float | None]:
    """The credit of each recorded message of a rollout; None where replays are missing.

    Args:
        outcome: what the rollout came to.
        replays: what its replays came to: for each call, in order, those that sampled it anew.
    """
    follow = [*replays[1:], [outcome]]
    return [
        float(leave_one_out([fmean(after), *siblings])[0]) if after and siblings else None
        for siblings, after in zip(replays, follow, strict=True)
    ]


def turn_weights(outcome: float, replays: Sequence[Sequence[float]]) -> list[float | None]:
    """An estimate of each turn's weight from one rollout; None where replays are missing. May be below 0: it is unbiased.

    Args:
        outcome: what the rollout came to.
        replays: as for ``turn_credits``.
    """
    variances = [variance([outcome, *siblings]) if siblings else None for siblings in replays]
    follow = [*variances[1:], 0.0]
    return [
        before - after if before is not None and after is not None else None
        for before, after in zip(variances, follow, strict=True)
    ]
