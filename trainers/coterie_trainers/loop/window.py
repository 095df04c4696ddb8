"""The window of asynchronous collection: which groups are in flight, and which of them a step may train on. No I/O.

Let B be the groups of a step and S the bound on staleness. A group that is enqueued when ``done`` steps are done is **due**
when done + S are: the next step must train on it, or it would be older than allowed. A step trains on the B whole groups that were
enqueued first, as soon as

1. B groups are whole, and
2. for each k from 0 to S, at most k · B groups are left whose time comes within k steps after it.

The second condition is that of a schedule by earliest deadline: with it all that is due later can still be trained in time,
B a step. It can always be met by waiting, since at most (S + 1) · B groups are in flight. So the bound holds for every group,
and nothing is dropped for its age. Dropping would be simpler and wrong: what is late are the long rollouts, so a team
would hardly learn from them, and the more so the better it uses long ones. A rollout's deadline bounds the wait.

With (S + 1) · B groups enqueued at once the conditions would leave no choice but to train in the order of the draws, and what
waits grows old. So no more are enqueued than keep the runner busy while a step trains, and none while the groups of two steps
are whole: then the trainer is what limits the pace.

AReaL (arXiv 2505.24298, section 5.1) has the limit of (S + 1) · B alone, which bounds staleness on the average: a group that
takes very long stays in flight while others pass it. Here the oldest is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coterie.vocabulary import Rollout


@dataclass(slots=True)
class Group:
    """A group in flight."""

    place: int
    """In the stream of draws."""
    enqueued: int
    """How many steps were done then."""
    rollout_ids: Sequence[str]
    ended: dict[str, Rollout] = field(default_factory=dict)
    """Id → rollout, as it ended."""

    @property
    def left(self) -> int:
        """Rollouts that have not ended."""
        return len(self.rollout_ids) - len(self.ended)


class Window:
    """The groups in flight."""

    def __init__(self, *, per_step: int, steps: int, max_staleness: int, busy: int) -> None:
        """An empty window.

        Args:
            per_step: Groups that a step trains on: B.
            steps: How many steps there are in all: no group is enqueued that none of them would train on.
            max_staleness: How many steps may be done between a group's enqueueing and its training, at most: S.
            busy: How many rollouts that have not ended there should be.
        """
        self.per_step = per_step
        self.steps = steps
        self.max_staleness = max_staleness
        self.busy = busy
        self._groups: dict[int, Group] = {}

    @property
    def groups(self) -> Sequence[Group]:
        """All groups, those that are due first in front."""
        return sorted(self._groups.values(), key=lambda group: (group.enqueued, group.place))

    @property
    def running(self) -> list[str]:
        """The ids of the rollouts that have not ended."""
        return [id_ for group in self._groups.values() for id_ in group.rollout_ids if id_ not in group.ended]

    def wants_more(self, done: int) -> bool:
        """True while another group should be enqueued; ``done`` steps are done."""
        there = len(self._groups)
        if there >= self.per_step * min(self.max_staleness + 1, self.steps - done):
            return False
        whole = sum(not group.left for group in self._groups.values())
        return there < self.per_step or (whole < 2 * self.per_step and len(self.running) < self.busy)

    def add(self, group: Group) -> None:
        """A group was enqueued."""
        self._groups[group.place] = group

    def note(self, rollouts: Iterable[Rollout]) -> None:
        """Take in what has become of rollouts in the window."""
        now = {rollout.id: rollout for rollout in rollouts if rollout.state.terminal}
        for group in self._groups.values():
            group.ended.update({id_: now[id_] for id_ in group.rollout_ids if id_ in now})

    def lacking(self, done: int) -> int:
        """How many rollouts must end, at least, before the next step can train; 0 when it can."""
        groups = self.groups
        lacking = _lacking(groups, self.per_step)
        for later in range(self.max_staleness + 1):
            due = [group for group in groups if group.enqueued + self.max_staleness <= done + later]
            lacking = max(lacking, _lacking(due, len(due) - later * self.per_step))
        return lacking

    def take(self) -> list[Group]:
        """The groups that the next step trains on; they leave the window. Only when nothing is lacking."""
        taken = [group for group in self.groups if not group.left][: self.per_step]
        for group in taken:
            del self._groups[group.place]
        return taken

    def clear(self) -> None:
        """Forget all groups."""
        self._groups.clear()


def _lacking(groups: Sequence[Group], whole: int) -> int:
    """How many rollouts must end, at least, until so many of these groups are whole."""
    left = sorted(group.left for group in groups)
    return sum(left[: max(0, whole)])
