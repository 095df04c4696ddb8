"""``mask``: what a role is worth to a rollout: its outcome less the outcome without the role.

    credit of role m in rollout τ = r(τ) − mean over K replays of r(τ without m)

Why this baseline: it is the team itself with one player out, on the same task and with the same beginning: all before the
role's first call is as it was then, so that luck before it is on both sides of the difference. A role whose words change
nothing gets 0; one that is needed gets what it brings, and one that does harm less than 0.

"Without" means that the role says a fixed text, ``(no answer)`` unless another is chosen for it, in all its calls. A text
and not the answers of an untrained model: those would ask what *training* the role brought, which before and after
tell already; the text says nothing, so the difference is what is said. It costs nothing and is the same each time. A
program that needs a form, such as JSON or a tool call, wants a text of that form: else it fails without the role, and a
replay that failed is no evidence.

Source: SHARP (arXiv 2602.08335): masks an agent and takes the difference as its marginal credit.

Where we depart: the paper adds the credit to the team's reward in training, with a weight; here it stands by itself, per
role and with an interval. With more than two roles a difference with one role out is not the Shapley value, which would
need all subsets of roles: two roles that can stand in for each other both get little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.episodes import Episode
from coterie.replays import NEUTRAL_TEXT, Replay
from coterie.vocabulary import Rollout
from coterie_trainers.audits.playing import Wanted


def mask_replays(original: Rollout, episode: Episode, *, count: int, texts: Mapping[str, str]) -> list[Wanted]:
    """The replays of one rollout: ``count`` without each of its roles.

    Args:
        original: the rollout.
        episode: what the team did in it.
        count: replays a role.
        texts: role → what it says when it is masked; ``NEUTRAL_TEXT`` for the others.
    """
    firsts: dict[str, int] = {}
    for number, turn in enumerate(episode.turns):
        firsts.setdefault(turn.role, number)
    return [
        Wanted(
            original,
            Replay(original.id, episode.attempt_id, first, masked_role=role, mask_text=texts.get(role, NEUTRAL_TEXT)),
            number,
        )
        for role, first in firsts.items()
        for number in range(count)
    ]


def role_credit(outcome: float, without: Sequence[float]) -> float | None:
    """The credit of a role in a rollout; None without a replay.

    Args:
        outcome: what the rollout came to.
        without: what it came to in each replay without the role.
    """
    return outcome - sum(without) / len(without) if without else None
