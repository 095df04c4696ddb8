"""Reading a run's rollouts, a bounded number at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from coterie.store.base import Store
from coterie.vocabulary import Rollout

AT_ONCE = 200
"""Rollouts whose spans are read at once, so that memory stays bounded."""


async def rollouts_of(store: Store, run_id: str) -> AsyncIterator[Rollout]:
    """All rollouts of a run, as they were queued."""
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, after=cursor)
        for rollout in page.items:
            yield rollout
        if page.cursor is None:
            return
        cursor = page.cursor


def portions(ids: Sequence[str]) -> Sequence[Sequence[str]]:
    """The ids, so many as are read at once."""
    return [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]
