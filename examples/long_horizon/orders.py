"""The orders: one or two items each, gifts or not, due today or later, with the stock as it lies that day.

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

from warehouse import AISLES, ITEMS, Order, Warehouse

SIZES = {"train": 800, "val": 48, "test": 96}
"""Orders a split."""
SPLITS = tuple(SIZES)
IN_STOCK = 5
"""Different items that lie in the warehouse."""


@dataclass(frozen=True, slots=True)
class Shift:
    """One order, and where things lie."""

    id: str
    order: Order
    stock: Mapping[str, str]

    @property
    def task(self) -> dict[str, Any]:
        """The line of the data file."""
        order = {"items": dict(self.order.items), "urgent": self.order.urgent}
        return {
            "id": self.id,
            "input": {"order": order, "stock": dict(self.stock)},
            "metadata": {"family": f"{len(self.order.items)} items", "difficulty": len(self.order.items)},
        }


def read_task(given: Mapping[str, Any]) -> tuple[Order, Warehouse]:
    """The order of a task's input, and the warehouse as the shift begins."""
    return Order(dict(given["order"]["items"]), bool(given["order"]["urgent"])), Warehouse(dict(given["stock"]))


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
        for items in itertools.combinations(ITEMS, size)
        for gifts in itertools.product((False, True), repeat=size)
        for urgent in (False, True)
    ]


def _shift(name: str, order: Order, rng: random.Random) -> Shift:
    wanted = rng.sample(list(order.items), len(order.items))
    others = rng.sample([item for item in ITEMS if item not in wanted], IN_STOCK - len(wanted))
    stock = {item: rng.choice(AISLES) for item in rng.sample([*wanted, *others], IN_STOCK)}
    return Shift(name, Order({item: order.items[item] for item in wanted}, order.urgent), stock)
