"""Groups of rollouts, given as they complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from coterie.vocabulary import Rollout

if TYPE_CHECKING:
    from coterie.store.base import Store

WAITS_AT_ONCE = 8
"""How many calls wait at a store for all groups together: a share of the groups each, so that what ends in one share
is not read again for the others."""

Completed = tuple[str, Sequence[Rollout]]


async def completed_groups(
    store: Store, groups: Mapping[str, Sequence[str]], *, timeout_seconds: float | None = None
) -> AsyncIterator[Completed]:
    """Each group, by its id, with its rollouts in the order given, as soon as all of them have ended.

    ``groups`` maps the id of a group to the ids of its rollouts. When ``timeout_seconds`` is up the iteration ends;
    groups that it did not give have not completed. Who stops early should close the iterator (``aclosing``).

    Raises:
        NotFoundError: names the rollouts that are missing.
    """
    give_up_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    names = list(groups)
    shares = [{name: groups[name] for name in names[start::WAITS_AT_ONCE]} for start in range(WAITS_AT_ONCE)]
    completed: asyncio.Queue[Completed | BaseException | None] = asyncio.Queue()

    async def wait_for(share: Mapping[str, Sequence[str]]) -> None:
        try:
            async with aclosing(_in_turn(store, share, give_up_at)) as of_share:
                async for one in of_share:
                    completed.put_nowait(one)
            completed.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again by the iteration
            completed.put_nowait(error)

    waiting = [asyncio.create_task(wait_for(share)) for share in shares if share]
    running = len(waiting)
    try:
        while running:
            one = await completed.get()
            if one is None:
                running -= 1
            elif isinstance(one, BaseException):
                raise one
            else:
                yield one
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _in_turn(
    store: Store, groups: Mapping[str, Sequence[str]], give_up_at: float | None
) -> AsyncGenerator[Completed, None]:
    open_of = {name: set(ids) for name, ids in groups.items()}
    known: dict[str, Rollout] = {}
    while open_of:
        left = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
        awaited = list(dict.fromkeys(id_ for name in open_of for id_ in groups[name] if id_ not in known))
        # No group can complete before as many rollouts have ended as the one nearest to its end still needs.
        nearest = min(len(ids) for ids in open_of.values())
        found = await store.wait(awaited, at_least=nearest, timeout_seconds=left)
        ended = {rollout.id: rollout for rollout in found if rollout.state.terminal}
        known |= ended
        for ids in open_of.values():
            ids.difference_update(ended)
        for name in [name for name, ids in open_of.items() if not ids]:
            del open_of[name]
            yield name, tuple(known[id_] for id_ in groups[name])
        if left == 0.0:
            return
