"""Which of a run's rollouts are audited.

By default those that the run's final policies made, so that new answers come from the policies that gave the old ones:
the sampled rollouts of the held-out test after training; before there are any, those of the last look at the validation
split, and before that of the last training step.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest

from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.vocabulary import Mode, Rollout, RolloutState

AFTER = {"evaluation": "after", "decoding": "sampled"}
"""Labels of the test rollouts that the final policies made as the team runs."""


async def choose_rollouts(
    store: Store, run_id: str, *, count: int, mode: Mode | None = None, seed: int = 0
) -> list[Rollout]:
    """A sample of a run's finished rollouts, as many of each task as of any other. The same arguments give the same.

    Args:
        store: Where the run is.
        run_id: The run.
        count: How many; fewer if there are fewer.
        mode: Of which mode, its newest; by default the first of test, val and train of which there are any.
        seed: Of the draw.

    Raises:
        ConfigError: the run has no finished rollout of this kind.
    """
    wanted = [mode] if mode is not None else [Mode.TEST, Mode.VAL, Mode.TRAIN]
    for each in wanted:
        found = _newest(await _finished(store, run_id, each))
        if found:
            return drawn(found, count, seed)
    there = " or ".join(each.value for each in wanted)
    raise ConfigError(
        f"Run {run_id} has no finished rollout of mode {there} that could be audited. Audit it when it has some."
    )


def _newest(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Of a test those after training, of the rest those of the last step: the others are of older policies."""
    if any("evaluation" in rollout.metadata for rollout in rollouts):
        labels = AFTER.items()
        return [rollout for rollout in rollouts if all(rollout.metadata.get(name) == value for name, value in labels)]
    last = max((rollout.step or 0 for rollout in rollouts), default=0)
    return [rollout for rollout in rollouts if (rollout.step or 0) == last]


def drawn(rollouts: Sequence[Rollout], count: int, seed: int | str) -> list[Rollout]:
    """``count`` of the rollouts. Tasks take turns, so that the sample spreads over as many of them as it can."""

    def lot(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    by_task: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in sorted(rollouts, key=lambda one: lot(one.id)):
        by_task[rollout.task_id].append(rollout)
    rounds = zip_longest(*(by_task[task] for task in sorted(by_task, key=lot)))
    return [rollout for each in rounds for rollout in each if rollout is not None][:count]


async def _finished(store: Store, run_id: str, mode: Mode) -> list[Rollout]:
    found: list[Rollout] = []
    cursor = None
    while True:
        page = await store.list_rollouts(run_id=run_id, mode=mode, state=RolloutState.SUCCEEDED, after=cursor)
        found += page.items
        if page.cursor is None:
            return found
        cursor = page.cursor
