"""Answers: how long a role's are, and how many of its calls fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie_trainers.credit import CreditedTurn


def answers_by_role(turns: Sequence[CreditedTurn]) -> Mapping[str, Mapping[str, float]]:
    """Role → ``length`` (mean tokens a response, of calls that have token ids) and ``error_rate`` (share of failed calls).

    A call may fail and the team still end its rollout; rollouts that failed as a whole are counted for the run.
    """
    figures: dict[str, dict[str, float]] = {}
    for role in dict.fromkeys(each.turn.role for each in turns):
        own = [each.turn for each in turns if each.turn.role == role]
        lengths = [len(turn.response_ids) for turn in own if turn.response_ids is not None]
        figures[role] = {"error_rate": sum(turn.error is not None for turn in own) / len(own)}
        if lengths:
            figures[role]["length"] = sum(lengths) / len(lengths)
    return figures
