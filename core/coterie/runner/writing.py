"""Brings what attempts recorded to the store, a portion a call; what the store refuses for good is sorted out and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from coterie.errors import CoterieError, StoreUnavailableError
from coterie.runner.reach import Reach, one_line
from coterie.runner.sink import PORTION_BYTES, PORTION_ITEMS, AttemptSink, Portion
from coterie.store.base import Store
from coterie.vocabulary import Span

_log = logging.getLogger("coterie.runner")


class Writing:
    """The way from the sinks of one runner to its store."""

    def __init__(self, store: Store, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._one_at_a_time = asyncio.Lock()

    async def flush(self, sinks: Iterable[AttemptSink]) -> bool:
        """Write what waits in these sinks now; False if the store did not take all of it, which then waits on."""
        left = {sink: sink.count for sink in sinks}
        async with self._one_at_a_time:
            while portions := _portions(left):
                try:
                    await self.write(portions)
                except Exception as error:  # noqa: BLE001 - they stay in the sinks, and go with the next portion
                    self._reach.failed(error)
                    return False
                self._reach.answered()
                for portion in portions:
                    left[portion.sink] -= len(portion.items)
        return True

    async def all_but_last(self, sink: AttemptSink) -> Portion:
        """Write what waits in a sink up to its last portion, and give that one.

        Raises:
            StoreUnavailableError: the rest waits on.
        """
        portion = sink.take()
        while sink.more_than(portion):
            await self.write([portion])
            portion = sink.take()
        return portion

    async def write(self, portions: Sequence[Portion]) -> None:
        """Write portions in one call, and forget them.

        Raises:
            StoreUnavailableError: the store cannot be reached; they stay.
        """
        spans = [span for portion in portions for span in portion.spans]
        rewards = [reward for portion in portions for reward in portion.rewards]
        try:
            if spans:
                await self._store.add_spans(spans)
            if rewards:
                await self._store.add_rewards(rewards)
        except StoreUnavailableError:
            raise
        except CoterieError:
            for portion in portions:
                await self.sort_out(portion)
            return
        for portion in portions:
            portion.written()

    async def sort_out(self, portion: Portion) -> None:
        """Write a portion of which the store refuses something: each span and reward alone, so that only what is
        refused is lost. Its attempt hears of it.

        Raises:
            StoreUnavailableError: the store cannot be reached; all of it stays.
        """
        refusals: list[CoterieError] = []
        for item in portion.items:
            try:
                if isinstance(item, Span):
                    await self._store.add_spans([item])
                else:
                    await self._store.add_rewards([item])
            except StoreUnavailableError:
                raise
            except CoterieError as error:
                refusals.append(error)
        portion.written()
        for refusal in refusals:
            portion.sink.refuse(refusal)
            _log.error("The store refused a span or reward, which is lost: %s", one_line(refusal))


def _portions(left: dict[AttemptSink, int]) -> list[Portion]:
    """Portions of as many sinks as fit one call, of what each still has to write."""
    portions: list[Portion] = []
    items = size = 0
    for sink, count in left.items():
        if count <= 0:
            continue
        waiting = sink.in_memory
        if portions and (items + min(count, PORTION_ITEMS) > PORTION_ITEMS or size + waiting > PORTION_BYTES):
            continue
        portion = sink.take()
        if not portion.items:
            left[sink] = 0
            continue
        portions.append(portion)
        items += len(portion.items)
        size += waiting
    return portions
