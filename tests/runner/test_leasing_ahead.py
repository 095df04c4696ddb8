"""A runner of brief attempts leases ahead, plays no more at once than it may, and gives back what it did not begin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coterie
from coterie.runner import Runner
from coterie.runner.attempts import BRIEF_SECONDS
from coterie.runner.turns import Turns
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Mode, Rollout, RolloutState

SLOTS = 4
AHEAD = 1
"""A quarter of the slots."""


class Gate:
    """A team whose rollouts end when the test says so; it counts how many are played at once."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.playing = 0
        self.most = 0

    async def team(self, task: coterie.Task) -> float:
        self.playing += 1
        self.most = max(self.most, self.playing)
        try:
            await self.open.wait()
        finally:
            self.playing -= 1
        return 1.0


async def queue(store: Store, count: int) -> list[str]:
    rollouts = [Rollout("t1", mode=Mode.VAL) for _ in range(count)]
    await store.enqueue(rollouts)
    return [rollout.id for rollout in rollouts]


async def states(store: Store, ids: Sequence[str]) -> list[RolloutState]:
    return [rollout.state for rollout in await store.get_rollouts(ids)]


async def leased(store: Store, ids: Sequence[str], count: int) -> None:
    """Wait until exactly so many are leased, and see that it stays so."""
    async with asyncio.timeout(20):
        while (await states(store, ids)).count(RolloutState.RUNNING) < count:  # noqa: ASYNC110 - the store tells ends only
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert (await states(store, ids)).count(RolloutState.RUNNING) == count


async def after_brief_ones(store: Store, gate: Gate) -> None:
    """Have some rollouts played that end at once, then close the gate."""
    gate.open.set()
    await store.wait(await queue(store, 2 * SLOTS), timeout_seconds=20)
    gate.open.clear()


async def all_slots_and_one_ahead(store: Store, gate: Gate) -> list[str]:
    """Rollouts that are leased, all but one of which are played."""
    await after_brief_ones(store, gate)
    ids = await queue(store, SLOTS + AHEAD)
    await leased(store, ids, SLOTS + AHEAD)
    return ids


async def test_brief_attempts_are_leased_ahead_and_no_more_are_played_at_once(store: Store) -> None:
    gate = Gate()
    async with Runner(store, coterie.rollout(gate.team), concurrency=SLOTS) as runner:
        await after_brief_ones(store, gate)
        ids = await queue(store, 20)
        await leased(store, ids, SLOTS + AHEAD)
        assert gate.playing == SLOTS
        gate.open.set()
        await store.wait(ids, timeout_seconds=20)
    assert gate.most == SLOTS
    assert runner.statistics.succeeded == runner.statistics.leased == 20 + 2 * SLOTS


async def test_long_attempts_are_left_to_other_runners(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.runner.attempts.BRIEF_SECONDS", 0.0)
    gate, other = Gate(), Gate()
    async with Runner(store, coterie.rollout(gate.team), concurrency=SLOTS):
        await after_brief_ones(store, gate)
        ids = await queue(store, SLOTS + AHEAD)
        await leased(store, ids, SLOTS)
        async with Runner(store, coterie.rollout(other.team), concurrency=SLOTS):
            await leased(store, ids, SLOTS + AHEAD)
            assert (gate.playing, other.playing) == (SLOTS, AHEAD)
            gate.open.set()
            other.open.set()
            await store.wait(ids, timeout_seconds=20)


async def test_what_was_leased_ahead_goes_back_when_the_runner_stops(store: Store) -> None:
    gate = Gate()
    async with Runner(store, coterie.rollout(gate.team), concurrency=SLOTS) as runner:
        ids = await all_slots_and_one_ahead(store, gate)
    assert set(await states(store, ids)) == {RolloutState.QUEUED}
    assert (gate.most, runner.statistics.cancelled) == (SLOTS, SLOTS + AHEAD)
    last = (await store.get_attempts(ids))[ids[-1]][-1]
    assert last.state is AttemptState.CANCELLED
    assert last.error is not None
    assert "had not begun" in last.error


async def test_what_was_leased_ahead_is_played_when_the_runner_drains(store: Store) -> None:
    gate = Gate()
    async with Runner(store, coterie.rollout(gate.team), concurrency=SLOTS) as runner:
        ids = await all_slots_and_one_ahead(store, gate)
        draining = asyncio.create_task(runner.drain())
        await asyncio.sleep(0.05)
        gate.open.set()
        await draining
    assert set(await states(store, ids)) == {RolloutState.SUCCEEDED}


async def test_leases_of_what_waits_are_kept_and_a_withdrawn_one_never_begins(store: Store) -> None:
    gate = Gate()
    assert BRIEF_SECONDS > 1.0
    async with Runner(store, coterie.rollout(gate.team), concurrency=SLOTS, lease_seconds=0.6):
        ids = await all_slots_and_one_ahead(store, gate)
        await asyncio.sleep(1.0)
        attempts = await store.get_attempts(ids)
        assert [len(attempts[id_]) for id_ in ids] == [1] * len(ids), "a lease ran out"
        await store.cancel([ids[-1]], reason="not wanted")
        await asyncio.sleep(0.5)
        gate.open.set()
        await store.wait(ids, timeout_seconds=20)
    assert (await states(store, ids))[-1] is RolloutState.CANCELLED
    assert gate.most == SLOTS


@settings(max_examples=60, deadline=None)
@given(
    at_once=st.integers(1, 3),
    steps=st.lists(
        st.sampled_from(["take", "give back", "interrupt the first", "interrupt the last", "cancel"]), max_size=30
    ),
)
def test_no_turn_is_lost_or_made(at_once: int, steps: list[str]) -> None:
    """However attempts come, end, are interrupted or cancelled: turns go to the first that wait, never to too many."""

    async def play() -> None:
        turns, loop = Turns(at_once), asyncio.get_running_loop()
        waiting: list[tuple[asyncio.Future[None], asyncio.Task[bool]]] = []
        held = 0

        async def settle() -> None:
            nonlocal held
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            got = [task.done() and task.result() for _, task in waiting]
            assert got == sorted(got, reverse=True), "first come, first served"
            held += sum(got)
            waiting[:] = [one for one in waiting if not one[1].done()]
            assert held == at_once or (held < at_once and not waiting)

        for step in steps:
            match step:
                case "take":
                    interrupted = loop.create_future()
                    waiting.append((interrupted, asyncio.create_task(turns.take(interrupted))))
                case "give back" if held:
                    held -= 1
                    turns.give_back()
                case "interrupt the first" if waiting:
                    waiting[0][0].set_result(None)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    assert waiting.pop(0)[1].result() is False
                case "interrupt the last" if waiting:
                    waiting[-1][0].set_result(None)
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    assert waiting.pop()[1].result() is False
                case "cancel" if waiting and held:
                    # In the same step as the turn comes: it must go to the next.
                    turns.give_back()
                    held -= 1
                    _, task = waiting.pop(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await settle()

    asyncio.run(play())
