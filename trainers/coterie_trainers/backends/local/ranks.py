"""The training processes (ranks) of one policy, as each of them sees the others."""

from __future__ import annotations

from typing import Any

from torch import distributed


def rank() -> int:
    """The number of this process among those that train the policy, from 0."""
    return int(distributed.get_rank())


def rank_count() -> int:
    """How many processes train the policy."""
    return int(distributed.get_world_size())


def gathered(own: Any) -> list[Any]:
    """What every rank has, in the order of the ranks; all of them must call it."""
    if rank_count() == 1:
        return [own]
    everybody: list[Any] = [None] * rank_count()
    distributed.all_gather_object(everybody, own)
    return everybody
