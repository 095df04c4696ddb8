"""The warehouse: aisles with stock, a bench where boxes are packed and labelled, a dock where they leave.

One robot goes about in it and does one action at a time. What it packs stays packed, and what is shipped is gone: a mistake
shows only when the customer opens the box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STOCK: Mapping[str, tuple[str, ...]] = {
    "glass": ("vase", "mirror", "bowl"),
    "light": ("lamp", "clock", "globe"),
    "kitchen": ("teapot", "kettle", "toaster"),
    "sports": ("racket", "saddle", "drum"),
    "tools": ("drill", "ladder"),
}
"""Aisle → what lies there, in any number."""
FRAGILE = frozenset({"vase", "mirror", "bowl", "lamp", "clock", "globe", "teapot"})
AISLE_OF = {item: aisle for aisle, items in STOCK.items() for item in items}
PLACES = (*STOCK, "bench", "dock")
LABELS = ("express", "standard")


@dataclass(slots=True)
class Warehouse:
    """The state of one shift."""

    at: str = "dock"
    hold: str | None = None
    """The item that the robot holds."""
    wrapped: bool = False
    """Whether that item is wrapped."""
    box: list[tuple[str, bool]] = field(default_factory=list)
    """What is packed, and whether it is wrapped."""
    label: str | None = None
    shipped: bool = False

    def do(self, action: str) -> bool:
        """Do an action; False where it is impossible, or none: then nothing changes."""
        verb, _, thing = action.partition(" ")
        deeds = {"go": self._go, "take": self._take, "wrap": self._wrap, "pack": self._pack, "label": self._stick}
        if self.shipped:
            return False
        if action == "ship":
            self.shipped = self.at == "dock" and self.label is not None and bool(self.box)
            return self.shipped
        return deeds[verb](thing) if verb in deeds else False

    def seen(self) -> str:
        """What the robot's screen shows."""
        held = f"{self.hold} {_how(self.wrapped)}" if self.hold else "nothing"
        return f"at {self.at} ; hold {held} ; label {self.label or 'nothing'}"

    def _go(self, place: str) -> bool:
        if place not in PLACES or place == self.at:
            return False
        self.at = place
        return True

    def _take(self, item: str) -> bool:
        """What it held goes back to its place."""
        if AISLE_OF.get(item) != self.at or item == self.hold:
            return False
        self.hold, self.wrapped = item, False
        return True

    def _wrap(self, item: str) -> bool:
        if self.at != "bench" or self.hold != item or self.wrapped:
            return False
        self.wrapped = True
        return True

    def _pack(self, item: str) -> bool:
        if self.at != "bench" or self.hold is None or self.hold != item:
            return False
        self.box.append((item, self.wrapped))
        self.hold = None
        return True

    def _stick(self, label: str) -> bool:
        if self.at != "bench" or label not in LABELS or label == self.label:
            return False
        self.label = label
        return True


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer wants."""

    items: Mapping[str, bool]
    """Item → whether it is a gift."""
    urgent: bool

    def seen(self, warehouse: Warehouse) -> str:
        """What the pick list shows: what is not in the box yet, when it is due, and what is in the box."""
        packed = [f"{item} {_how(wrapped)}" for item, wrapped in warehouse.box]
        left = [
            f"{item} {'gift' if gift else 'own'}"
            for item, gift in self.items.items()
            if item not in dict(warehouse.box)
        ]
        due = "today" if self.urgent else "later"
        return f"left {' , '.join(left) or 'nothing'} ; due {due} ; box {' , '.join(packed) or 'nothing'}"

    @property
    def box(self) -> dict[str, bool]:
        """Item → whether it must be wrapped: gifts, and what breaks."""
        return {item: gift or item in FRAGILE for item, gift in self.items.items()}

    @property
    def label(self) -> str:
        """How it must be sent."""
        return "express" if self.urgent else "standard"

    def fulfilled(self, warehouse: Warehouse) -> bool:
        """True when the right box has left."""
        right = len(warehouse.box) == len(self.box) and dict(warehouse.box) == self.box
        return right and warehouse.shipped and warehouse.label == self.label


def _how(wrapped: bool) -> str:
    return "wrapped" if wrapped else "plain"
