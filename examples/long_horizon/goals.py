"""Sub-goals: what the planner sets and the executor pursues.

pack vase wrapped     the item lies in the box, so wrapped or plain
send express          the box has left, with this label
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from warehouse import AISLE_OF, LABELS, Warehouse


@dataclass(frozen=True, slots=True)
class Goal:
    """One sub-goal."""

    verb: str
    """``pack`` or ``send``."""
    what: str
    """The item, or the label."""
    wrapped: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The sub-goal that a text stands for, or None if it is none."""
        match text.split():
            case ["pack", item, ("wrapped" | "plain") as how] if item in AISLE_OF:
                return cls("pack", item, how == "wrapped")
            case ["send", label] if label in LABELS:
                return cls("send", label)
        return None

    def __str__(self) -> str:
        return (
            f"pack {self.what} {'wrapped' if self.wrapped else 'plain'}" if self.verb == "pack" else f"send {self.what}"
        )

    def over(self, warehouse: Warehouse, packed_before: int) -> bool:
        """True when something was packed, or the box has left: there is no more to do for it, right or wrong."""
        return warehouse.shipped if self.verb == "send" else len(warehouse.box) > packed_before

    def reached(self, warehouse: Warehouse, packed_before: int) -> bool:
        """True when what it asks for is so."""
        if self.verb == "send":
            return warehouse.shipped and warehouse.label == self.what
        return warehouse.box[packed_before:] == [(self.what, self.wrapped)]
