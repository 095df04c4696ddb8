"""Playing: rollouts of candidates, as many at once as the budget allows, and what came of each.

One task of the event loop does it for all who ask: it enqueues what may begin, waits for the store to say that something has
ended, reads what ended in one go, and looks again. Nobody polls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Rollout, RolloutState
from coterie_trainers.prompts.budget import Ledger, Room, Usage
from coterie_trainers.prompts.costs import Costs
from coterie_trainers.prompts.study import BudgetSpentError

CUT_OFF = "the run was cut off"
"""Why the rollouts are withdrawn that a run leaves behind; they are played when they are asked for again."""


@dataclass(frozen=True, slots=True)
class Played:
    """A rollout that has ended."""

    rollout: Rollout
    episode: Episode
    """Of its last attempt that succeeded, else of its last."""
    usage: Usage
    """Of all its attempts."""
    warnings: tuple[str, ...] = ()
    """What the runner found wrong though the attempt ended well."""


@dataclass(slots=True)
class _Wish:
    rollout: Rollout
    result: asyncio.Future[Played] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Playing:
    """Plays the rollouts of one run while its ``async with`` block lasts. They must have been promised by the ledger."""

    def __init__(self, store: Store, ledger: Ledger, costs: Costs, *, run_id: str, at_once: int) -> None:
        """``at_once`` is how many rollouts are in flight at most while a limit other than that of rollouts is set; else twice as
        many are, so that a runner's free slot finds the next one queued.
        """
        self.store = store
        self.ledger = ledger
        self.costs = costs
        self.run_id = run_id
        limits = ledger.budget
        metered = any(each is not None for each in (limits.calls, limits.tokens, limits.money, limits.seconds))
        self._at_once = at_once if metered else 2 * at_once
        self._before: dict[str, Rollout] = {}
        """What an earlier process left: id → rollout."""
        self._waiting: deque[_Wish] = deque()
        self._in_flight: dict[str, _Wish] = {}
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._before = {each.id: each for each in await self._made()}
        left = [each.id for each in self._before.values() if not each.state.terminal]
        if left:
            await self.store.cancel(left, reason=CUT_OFF)
        self._task = asyncio.create_task(self._play(), name="prompts: playing")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        left = [*self._in_flight.values(), *self._waiting]
        for wish in left:
            wish.result.cancel()
        if self._in_flight:
            await self.store.cancel(list(self._in_flight), reason=CUT_OFF)

    async def play(self, rollouts: Sequence[Rollout]) -> Sequence[Played | BudgetSpentError]:
        """Play rollouts, or take what an earlier process played of them; gives what came of each, in order. Those that were not
        begun since the budget is spent come back as that error.
        """
        if self._fault is not None:
            raise self._fault
        wishes = [_Wish(rollout) for rollout in rollouts]
        done = [wish for wish in wishes if self._done_before(wish.rollout.id)]
        if done:
            await self._settle(done, [self._before[wish.rollout.id] for wish in done], was_in_flight=False)
        self._waiting.extend(wish for wish in wishes if not wish.result.done())
        self._asked.set()
        ended = await asyncio.gather(*(wish.result for wish in wishes), return_exceptions=True)
        found: list[Played | BudgetSpentError] = []
        for one in ended:
            if isinstance(one, BaseException) and not isinstance(one, BudgetSpentError):
                raise one
            found.append(one)
        return found

    async def read(self, rollout_ids: Sequence[str]) -> dict[str, Episode]:
        """The episodes of rollouts that have ended, by id."""
        if not rollout_ids:
            return {}
        return {
            played.rollout.id: played.episode for played in await self._read(await self.store.get_rollouts(rollout_ids))
        }

    def _done_before(self, rollout_id: str) -> bool:
        rollout = self._before.get(rollout_id)
        return rollout is not None and rollout.state in (RolloutState.SUCCEEDED, RolloutState.DEAD)

    async def _play(self) -> None:
        try:
            while True:
                await self._begin()
                if not self._in_flight:
                    await self._asked.wait()
                    self._asked.clear()
                    continue
                for_more = asyncio.ensure_future(self._asked.wait())
                for_ends = asyncio.ensure_future(self.store.wait(list(self._in_flight), at_least=1))
                try:
                    await asyncio.wait({for_more, for_ends}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for_more.cancel()
                    if not for_ends.done():
                        for_ends.cancel()
                        await asyncio.wait({for_ends})
                self._asked.clear()
                if not for_ends.cancelled():
                    ended = [rollout for rollout in for_ends.result() if rollout.state.terminal]
                    await self._settle([self._in_flight[rollout.id] for rollout in ended], ended)
        except Exception as error:  # noqa: BLE001 - raised again where rollouts are awaited
            self._fault = error
            for wish in [*self._in_flight.values(), *self._waiting]:
                if not wish.result.done():
                    wish.result.set_exception(error)
            self._waiting.clear()

    async def _begin(self) -> None:
        """Begin what may begin; refuse the rest when nothing may any more."""
        beginning: list[_Wish] = []
        room = Room.FREE
        while self._waiting and len(self._in_flight) < self._at_once:
            room = self.ledger.room()
            if room is not Room.FREE:
                break
            wish = self._waiting.popleft()
            self.ledger.begin()
            self._in_flight[wish.rollout.id] = wish
            beginning.append(wish)
        if beginning:
            again = [wish.rollout.id for wish in beginning if wish.rollout.id in self._before]
            await self.store.enqueue([wish.rollout for wish in beginning if wish.rollout.id not in self._before])
            if again:
                await self.store.requeue(again)
        elif room is Room.SPENT:
            self._refuse()

    def _refuse(self) -> None:
        said = self.ledger.why_full()
        while self._waiting:
            self._waiting.popleft().result.set_exception(BudgetSpentError(said))

    async def _settle(self, wishes: Sequence[_Wish], ended: Sequence[Rollout], *, was_in_flight: bool = True) -> None:
        """Read what came of rollouts that have ended, and tell those who wait."""
        for wish, played in zip(wishes, await self._read(ended), strict=True):
            self.ledger.end(played.usage, was_in_flight=was_in_flight)
            self._in_flight.pop(wish.rollout.id, None)
            if not wish.result.done():
                wish.result.set_result(played)

    async def _read(self, ended: Sequence[Rollout]) -> list[Played]:
        attempts = await self.store.get_attempts([rollout.id for rollout in ended])
        ids = [attempt.id for each in attempts.values() for attempt in each]
        spans, rewards = await asyncio.gather(self.store.get_spans(ids), self.store.get_rewards(ids))
        found = []
        for rollout in ended:
            made = attempts.get(rollout.id, ())
            usage = self.costs.of(span for attempt in made for span in spans.get(attempt.id, ()))
            good = [attempt for attempt in made if attempt.state is AttemptState.SUCCEEDED] or list(made)
            last = good[-1] if good else None
            episode = (
                build_episode(rollout.task_id, last.id, rollout.id, spans.get(last.id, ()), rewards.get(last.id, ()))
                if last is not None
                else Episode(rollout.id, "", rollout.task_id, ())
            )
            found.append(Played(rollout, episode, usage, tuple(last.warnings) if last is not None else ()))
        return found

    async def _made(self) -> list[Rollout]:
        """All rollouts of the run so far."""
        found: list[Rollout] = []
        cursor = None
        while True:
            page = await self.store.list_rollouts(run_id=self.run_id, after=cursor)
            found += page.items
            if page.cursor is None:
                return found
            cursor = page.cursor
