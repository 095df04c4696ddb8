"""Reverify: score stored rollouts again with a verifier that training never sees.

A reward that is optimised stops to measure what it was made for (Gao et al., "Scaling Laws for Reward Model Overoptimization",
arXiv 2210.10760: the proxy goes on rising while the gold reward falls). So a second judge, held out, looks at a sample of
each step's rollouts, and the guard at the gap:

    verifier_gap = mean over rollouts of (team's reward − verified score)

The verifier must give scores in the unit of the reward. What it says never becomes a reward: training on a monitor teaches
to please the monitor.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from coterie.apps import load_function
from coterie.episodes import Episode
from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.evaluation import team_reward

Verifier = Callable[[Task, Episode], float | Awaitable[float]]
"""A task and what the team did → a score in the unit of the team's reward. May be a coroutine function."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verifier said of a sample of rollouts."""

    rewards: Sequence[float]
    """The team's reward, of the rollouts that could be verified."""
    scores: Sequence[float]
    """The verifier's, of the same."""
    failures: Sequence[str]
    """What went wrong with the others."""

    def figures(self) -> dict[str, float]:
        """``verified`` (mean score), ``verifier_gap``, ``verifier_gap_error`` (standard error); none without a score."""
        if not self.scores:
            return {}
        gaps = [reward - score for reward, score in zip(self.rewards, self.scores, strict=True)]
        error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
        return {"verified": fmean(self.scores), "verifier_gap": fmean(gaps), "verifier_gap_error": error}


def load_verifier(spec: str, *, folder: Path) -> Verifier:
    """The function that ``file.py:function`` names, looked for from ``folder``.

    Raises:
        ConfigError: it does not load, or does not take a task and an episode.
    """
    try:
        function: Verifier = load_function(spec, folder=folder)
    except ConfigError as error:
        raise ConfigError(f"guard.verifier: {str(error).removeprefix('App ')}") from error
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"guard.verifier: {spec} must take two arguments, the task and the episode.") from error
    return function


async def reverify(
    verifier: Verifier, tasks: Mapping[str, Task], episodes: Sequence[Episode], *, most: int, seed: str
) -> Verified:
    """Score episodes again, ``most`` of them at most, drawn by ``seed``. What the verifier raises is a failure, not an error."""
    chosen = random.Random(seed).sample(list(episodes), min(most, len(episodes)))
    rewards, scores, failures = [], [], []
    for episode in chosen:
        try:
            score = await _score(verifier, tasks[episode.task_id], episode)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything
            failures.append(f"{type(error).__name__}: {error}")
            continue
        if math.isfinite(score):
            rewards.append(team_reward(episode.rewards))
            scores.append(score)
        else:
            failures.append(f"it gave {score} for rollout {episode.rollout_id}")
    return Verified(rewards, scores, failures)


async def _score(verifier: Verifier, task: Task, episode: Episode) -> float:
    # A plain function may take its time: other things go on meanwhile.
    given = await asyncio.to_thread(verifier, task, episode)
    return float(await given if inspect.isawaitable(given) else given)
