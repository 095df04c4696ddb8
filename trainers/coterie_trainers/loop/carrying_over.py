"""Asynchronous collection: groups that are not whole when a step trains carry over to the step in which they are.

Rollouts are played on while a step trains and while weights change: a model server lets no call through in the moment of
the change (its gate), and answers the next one with the new weights. So the turns of one rollout may come from several
policy versions, of which each records its own, and the loss measures each token against the policy that sampled it.

Endpoints stay what they are while weights change (``coterie.interfaces.Backend.serve``), so a rollout may be pinned
when it is enqueued: the pin tells where to call, and the answer tells which version it was.

A run that is cut off goes on from its last checkpoint. What was in flight then is begun anew, whole groups included: some
of its turns may come from weights that were lost with the steps after the checkpoint. What was trained up to the
checkpoint is not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from coterie_trainers.loop.collecting import Collected, GroupStream, Memory, episodes_of
from coterie_trainers.loop.job import Job
from coterie_trainers.loop.window import Group, Window


class AsyncCollector:
    """A step trains on the groups that are whole first; the next ones are in flight meanwhile."""

    def __init__(self, job: Job) -> None:
        training = job.config.training
        self.job = job
        self.stream = GroupStream(job)
        self.window = Window(
            per_step=self.stream.per_step,
            steps=training.steps,
            max_staleness=training.max_staleness,
            busy=job.config.runner.concurrency + self.stream.per_step * training.rollouts_per_task // 2,
        )
        self._next = 0
        """The first place that was never enqueued."""
        self._again: list[int] = []
        """Places before it that must be begun anew."""

    async def collect(self, step: int, pinned: Mapping[str, int]) -> Collected:
        """Wait until enough groups are whole; the others stay in flight."""
        done = step - 1
        await self._enqueue(step, pinned)
        while lacking := self.window.lacking(done):
            self.window.note(await self.job.store.wait(self.window.running, at_least=lacking))
            await self._enqueue(step, pinned)
        groups = self.window.take()
        ended = [group.ended[id_] for group in groups for id_ in group.rollout_ids]
        figures = {
            "groups_carried_over": sum(group.enqueued < done for group in groups),
            "groups_in_flight": len(self.window.groups),
        }
        return Collected(ended, await episodes_of(self.job.store, ended), figures)

    async def withdraw(self, reason: str) -> None:
        """Take back all groups in flight; the next ``collect`` begins them anew."""
        await self.job.store.cancel(self.window.running, reason=reason)
        self._again = sorted([*self._again, *(group.place for group in self.window.groups)])
        self.window.clear()

    def memory(self) -> Memory:
        """Which groups were drawn and not trained."""
        unfinished = sorted([*self._again, *(group.place for group in self.window.groups)])
        return {"next": self._next, "unfinished": json.dumps(unfinished)}

    def recall(self, memory: Memory) -> None:
        """Go on from there: what was in flight is begun anew."""
        self._next = int(memory["next"] or 0)
        self._again = json.loads(str(memory["unfinished"]))

    async def _enqueue(self, step: int, pinned: Mapping[str, int]) -> None:
        rollouts = []
        while self.window.wants_more(step - 1):
            place = self._again.pop(0) if self._again else self._next
            self._next = max(self._next, place + 1)
            group = self.stream.group(place, step, pinned)
            self.window.add(Group(place, step - 1, [rollout.id for rollout in group]))
            rollouts += group
        if rollouts:
            await self.job.store.enqueue(rollouts)
