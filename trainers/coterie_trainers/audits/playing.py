"""Plays replays: each is made once, however often its audit is cut off and begun again.

A replay's id is made of what it is: the attempt, the change, its number, and who answers what is asked anew. So an audit
that begins again finds what is done, and one with more replays adds only what is missing. What was left unfinished is made
anew, for the model server that it was meant for may be gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.replays import Replay
from coterie.store.base import Store
from coterie.vocabulary import Mode, Rollout, RolloutState
from coterie_trainers.audits.outcomes import outcome
from coterie_trainers.progress import Progress

CHUNK = 64
"""Replays waited for at once: the progress is told after each."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replay to be made."""

    original: Rollout
    replay: Replay
    number: int
    """Tells replays apart that are alike."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a replay came to."""

    wanted: Wanted
    outcome: float | None
    """None if it is no evidence."""
    problem: str | None
    """Why it is none."""
    asked: int
    """Calls that went to a model."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where replays are played."""

    store: Store
    run_id: str
    pinned: Mapping[str, int] | None
    """The resources that they are pinned to; None for those of the rollouts that they replay."""
    answered_by: str
    """Names the policies that answer what is asked anew, such as ``step 12``: those of another name are other replays."""
    tries: Mapping[str, Any]
    """The fields of a rollout that say how long and how often it is tried."""
    progress: Progress | None = None
    """Is told how far it is."""

    async def play(self, wanted: Sequence[Wanted], label: str) -> list[Played]:
        """Make the replays that are not made yet, and give all, in order."""
        ids = [self._id_of(each) for each in wanted]
        done = await self._make(dict(zip(ids, wanted, strict=True)), label)
        episodes: dict[str, Episode] = {}
        for start in range(0, len(ids), CHUNK):
            some = [id_ for id_ in ids[start : start + CHUNK] if done[id_].state is RolloutState.SUCCEEDED]
            episodes |= {episode.rollout_id: episode for episode in await load_episodes(self.store, some)}
        return [_played(each, done[id_], episodes.get(id_)) for id_, each in zip(ids, wanted, strict=True)]

    async def _make(self, wanted: Mapping[str, Wanted], label: str) -> dict[str, Rollout]:
        made = await self._made(wanted)
        done = {id_: rollout for id_, rollout in made.items() if rollout.state is RolloutState.SUCCEEDED}
        left = [id_ for id_ in made if id_ not in done]
        if left:
            await self.store.cancel(left, reason="the audit begins again")
            await self.store.delete_rollouts(left)
        missing = [self._rollout(id_, each) for id_, each in wanted.items() if id_ not in done]
        if self.progress is not None:
            self.progress.stage(label, len(missing))
        await self.store.enqueue(missing)
        for start in range(0, len(missing), CHUNK):
            some = [rollout.id for rollout in missing[start : start + CHUNK]]
            done |= {rollout.id: rollout for rollout in await self.store.wait(some)}
            if self.progress is not None:
                self.progress.advance(len(some))
        return done

    async def _made(self, wanted: Mapping[str, Wanted]) -> dict[str, Rollout]:
        """Those of the replays that the store has."""
        found: dict[str, Rollout] = {}
        cursor = None
        while True:
            page = await self.store.list_rollouts(run_id=self.run_id, mode=Mode.AUDIT, after=cursor)
            found |= {rollout.id: rollout for rollout in page.items if rollout.id in wanted}
            if page.cursor is None:
                return found
            cursor = page.cursor

    def _rollout(self, id_: str, wanted: Wanted) -> Rollout:
        original = wanted.original
        return Rollout(
            original.task_id,
            mode=Mode.AUDIT,
            id=id_,
            run_id=self.run_id,
            group_id=f"{self.run_id}/audit/{wanted.replay.attempt_id}",
            step=original.step,
            resources=self.pinned if self.pinned is not None else original.resources,
            sampling=original.sampling,
            metadata={**wanted.replay.as_metadata(), "answered_by": self.answered_by},
            **self.tries,
        )

    def _id_of(self, wanted: Wanted) -> str:
        what = json.dumps([wanted.replay.as_metadata(), wanted.number, self.answered_by], sort_keys=True)
        return f"ro-audit-{hashlib.sha256(what.encode()).hexdigest()[:20]}"


async def withdraw_unfinished(store: Store, run_id: str) -> None:
    """Withdraw what an audit that was cut off left unfinished, before a runner takes it: its model server is gone."""
    for state in (RolloutState.QUEUED, RolloutState.RUNNING):
        cursor = None
        while True:
            page = await store.list_rollouts(run_id=run_id, mode=Mode.AUDIT, state=state, after=cursor)
            await store.cancel([rollout.id for rollout in page.items], reason="the audit was cut off")
            if page.cursor is None:
                break
            cursor = page.cursor


def _played(wanted: Wanted, rollout: Rollout, episode: Episode | None) -> Played:
    asked = sum(turn.answered_by is None for turn in episode.turns) if episode is not None else 0
    if episode is None:
        return Played(wanted, None, rollout.reason or f"it is {rollout.state.value}", asked)
    if episode.diverged is not None:
        return Played(wanted, None, episode.diverged, asked)
    reached = outcome(episode.rewards)
    return Played(wanted, reached, "it ended without a reward" if reached is None else None, asked)
