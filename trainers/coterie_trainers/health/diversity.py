"""Diversity: how different the answers are that a role gives to one and the same task.

    distinct-2 of a group = different bigrams in all its answers / bigrams in all its answers

distinct-n is that of Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (arXiv
1510.03055). Kirk et al., "Understanding the Effects of RLHF on LLM Generalisation and Diversity" (arXiv 2310.06452) take it
over several answers to one input and average over the inputs ("per-input diversity"): that is what reinforcement learning
loses first, and what we measure. A group is a task, a role and the how-many-eth call of that role.

Where we depart: each answer has a mark at its beginning and its end, so that an answer of one token counts too; and the
share is scaled such that K equal answers give 0 whatever K is, since failed rollouts make groups unequal:

    diversity = (distinct-2 − 1/K) / (1 − 1/K)

Long answers share bigrams by chance, so distinct-n falls as answers grow. Compare a role with its own past, and look at
its length beside.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from coterie.episodes import Turn
from coterie_trainers.credit import CreditedTurn

_BEGIN, _END = object(), object()


def diversity_by_role(turns: Sequence[CreditedTurn]) -> Mapping[str, float]:
    """Role → the mean diversity of its groups, from 0 (all answers equal) to 1. Failed calls
    are left out; a role without a group of two has none.
    """
    groups: dict[tuple[str, str, int], list[Sequence[Hashable]]] = {}
    for each in turns:
        if each.turn.error is not None:
            continue
        group = (each.sample.role, each.sample.task_id, each.sample.turn)
        groups.setdefault(group, []).append(_tokens(each.turn))
    by_role: dict[str, list[float]] = {}
    for (role, _, _), answers in groups.items():
        if len(answers) > 1:
            by_role.setdefault(role, []).append(diversity(answers))
    return {role: sum(values) / len(values) for role, values in by_role.items()}


def diversity(answers: Sequence[Sequence[Hashable]]) -> float:
    """The diversity of two or more answers, each a sequence of tokens: 0 where all are equal, 1 where none share anything."""
    bigrams = [pair for answer in answers for pair in pairwise((_BEGIN, *answer, _END))]
    least = 1 / len(answers)
    return max(0.0, (len(set(bigrams)) / len(bigrams) - least) / (1 - least))


def _tokens(turn: Turn) -> Sequence[Hashable]:
    return turn.response_ids if turn.response_ids is not None else turn.text.split()
