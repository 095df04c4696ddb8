"""Which tasks a training step works on: drawn from the seed and the step alone, so that a resumed run draws the same."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from coterie.errors import ConfigError
from coterie.vocabulary import Task


def draw_tasks(tasks: Sequence[Task], *, count: int, seed: int, step: int, balance: str | None = None) -> list[Task]:
    """``count`` different tasks for a step (fewer if there are fewer).

    With ``balance`` the values of that metadata key are drawn equally often: they take turns in a random order.

    Raises:
        ConfigError: a task lacks the metadata key.
    """
    random_ = random.Random(f"{seed}/{step}")
    if balance is None:
        return random_.sample(list(tasks), min(count, len(tasks)))
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if balance not in task.metadata:
            raise ConfigError(f"training.balance: task {task.id!r} has no {balance!r} in its metadata.")
        groups[str(task.metadata[balance])].append(task)
    queues = [random_.sample(groups[value], len(groups[value])) for value in sorted(groups)]
    random_.shuffle(queues)
    drawn: list[Task] = []
    while len(drawn) < count and any(queues):
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
    return drawn
