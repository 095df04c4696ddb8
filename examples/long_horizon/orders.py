"""The orders: one or two items each, gifts or not, due today or later.

The splits are apart by content: what an order of ``val`` or ``test`` asks for, no order of ``train`` asks for.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warehouse import AISLE_OF, Order

SIZES = {"train": 800, "val": 48, "test": 96}
"""Orders a split."""
SPLITS = tuple(SIZES)


@dataclass(frozen=True, slots=True)
class Shift:
    """One order to be fulfilled."""

    id: str
    order: Order

    @property
    def task(self) -> dict[str, Any]:
        """The line of the data file."""
        order = {"items": dict(self.order.items), "urgent": self.order.urgent}
        return {
            "id": self.id,
            "input": {"order": order},
            "metadata": {"family": f"{len(self.order.items)} items", "difficulty": len(self.order.items)},
        }


def read_order(given: Mapping[str, Any]) -> Order:
    """The order of a task's input."""
    return Order(dict(given["order"]["items"]), bool(given["order"]["urgent"]))


def make_splits() -> dict[str, list[Shift]]:
    """The orders of each split, half with one item and half with two. The same on every call."""
    by_size = [_contents(1), _contents(2)]
    splits: dict[str, list[Shift]] = {}
    for contents in by_size:
        random.Random("split of orders").shuffle(contents)
    for split in ("test", "val", "train"):
        rng = random.Random(f"orders of {split}")
        shifts = []
        pools = by_size
        if split != "train":
            pools = [
                [contents.pop() for _ in range(min(SIZES[split] // 2, len(contents) // 5))] for contents in by_size
            ]
        for number in range(SIZES[split]):
            pool = pools[number % 2]
            shifts.append(_shift(f"{split}-{number}", pool[number // 2 % len(pool)], rng))
        splits[split] = shifts
    return {split: splits[split] for split in SPLITS}


def write_tasks(shifts: Iterable[Shift], path: Path) -> None:
    """Write a data file: one task a line."""
    path.write_text("".join(json.dumps(shift.task) + "\n" for shift in shifts))


def _contents(size: int) -> list[Order]:
    """All orders of so many items; which of two comes first does not make another."""
    return [
        Order(dict(zip(items, gifts, strict=True)), urgent)
        for items in itertools.combinations(AISLE_OF, size)
        for gifts in itertools.product((False, True), repeat=size)
        for urgent in (False, True)
    ]


def _shift(name: str, order: Order, rng: random.Random) -> Shift:
    items = rng.sample(list(order.items), len(order.items))
    return Shift(name, Order({item: order.items[item] for item in items}, order.urgent))
