"""Can a shaper make the wrong behaviour pay? It can where it turns the order of returns around.

For every role, and every two episodes of a task in which the role acted: the return to the role without the shaper, and with
it. A pair whose order is reversed is a wrong behaviour that pays: the role is drawn to what is truly worse. Pairs that
become equal, or whose order was equal, count as kept.

The return to a role is Σ_k γ^k · (what arrives with its k-th turn), the mean over its chains where it has several; γ is the
shaper's own ``discount``, else 1.

A potential-based shaper keeps the order of all that begins in the same state (Ng, Harada and Russell, 1999), and a role does
not choose the state in which it is called. So for shapers with a ``discount`` only episodes are compared in which the
role's first call got the same messages.

This is evidence from the episodes at hand, not a proof: a behaviour that nobody has tried yet is in none of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from coterie.episodes import Episode
from coterie.interfaces import RewardShaper
from coterie_trainers.chains import chains
from coterie_trainers.credit import Credit, turn_rewards

ROUNDING = 1e-9
"""Differences of returns below this part of the larger one are none."""


@dataclass(frozen=True, slots=True)
class WrongOrder:
    """Two episodes of a task of which a shaper makes the worse one pay more to a role."""

    task_id: str
    role: str
    better: str
    """Rollout of the one with the larger true return."""
    worse: str
    true: tuple[float, float]
    """Returns without the shaper, of the better and the worse."""
    shaped: tuple[float, float]
    """Returns with it."""

    def __str__(self) -> str:
        return (
            f"task {self.task_id}, role {self.role}: rollout {self.better} is worth {self.true[0]:g} and "
            f"{self.worse} {self.true[1]:g}, but shaped {self.shaped[0]:g} and {self.shaped[1]:g}"
        )


@dataclass(frozen=True, slots=True)
class OrderCheck:
    """What became of the order of returns under a shaper."""

    pairs: int
    """Pairs that were compared: those of unequal true return."""
    wrong: Sequence[WrongOrder]
    """Those whose order is reversed."""

    @property
    def share(self) -> float:
        """Wrong pairs as part of all; 0 without any pair."""
        return len(self.wrong) / self.pairs if self.pairs else 0.0


def check_order(shaper: RewardShaper, episodes: Sequence[Episode], credit: Credit | None = None) -> OrderCheck:
    """Compare the order of returns with and without a shaper.

    Args:
        shaper: The one in question, by itself.
        episodes: Several of a task, or there is nothing to compare.
        credit: How rewards count; its own shapers are left out.

    Raises:
        RewardError: as ``credit.turn_rewards``.
    """
    plain = replace(credit or Credit(), shapers={})
    shaped = replace(plain, shapers={"shaper": shaper})
    discount: float | None = getattr(shaper, "discount", None)
    groups: dict[Hashable, list[_Return]] = defaultdict(list)
    for episode in episodes:
        true_by_role = _returns(episode, plain, discount or 1.0)
        shaped_by_role = _returns(episode, shaped, discount or 1.0)
        for role, true in true_by_role.items():
            start = None if discount is None else _start(episode, role)
            groups[episode.task_id, role, start].append(_Return(episode, role, true, shaped_by_role[role]))
    pairs, wrong = 0, []
    for members in groups.values():
        for one, other in combinations(members, 2):
            better, worse = (one, other) if one.true > other.true else (other, one)
            if _more(better.true, worse.true):
                pairs += 1
                if _more(worse.shaped, better.shaped):
                    wrong.append(better.reversed_with(worse))
    return OrderCheck(pairs, wrong)


@dataclass(frozen=True, slots=True)
class _Return:
    episode: Episode
    role: str
    true: float
    shaped: float

    def reversed_with(self, worse: _Return) -> WrongOrder:
        return WrongOrder(
            self.episode.task_id,
            self.role,
            self.episode.rollout_id,
            worse.episode.rollout_id,
            (self.true, worse.true),
            (self.shaped, worse.shaped),
        )


def _returns(episode: Episode, credit: Credit, discount: float) -> dict[str, float]:
    """Role → its return."""
    rewards = turn_rewards(episode, credit)
    by_role: dict[str, list[float]] = defaultdict(list)
    for chain in chains(episode.turns):
        by_role[episode.turns[chain[0]].role].append(
            sum(discount**at * rewards[place].step for at, place in enumerate(chain))
        )
    return {role: sum(values) / len(values) for role, values in by_role.items()}


def _start(episode: Episode, role: str) -> str:
    first = next(turn for turn in episode.turns if turn.role == role)
    return json.dumps([dict(message) for message in first.messages], sort_keys=True, default=str)


def _more(one: float, other: float) -> bool:
    return one - other > ROUNDING * max(abs(one), abs(other), 1e-300)
