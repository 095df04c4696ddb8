"""The warehouse: aisles with stock, a bench where boxes are packed and labelled, a dock where they leave.

One robot goes about in it and does one action at a time. What it packs stays packed, and what is shipped is gone: a mistake
shows only when the customer opens the box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AISLES = ("north", "south", "east", "west", "upper", "lower")
ITEMS = (
    *("vase", "mirror", "lamp", "teapot", "clock", "globe", "bowl"),
    *("drill", "drum", "kettle", "ladder", "racket", "saddle", "toaster"),
)
FRAGILE = frozenset(ITEMS[:7])
LABELS = ("express", "standard")


@dataclass(slots=True)
class Warehouse:
    """The state of one shift."""

    stock: dict[str, str]
    """Item → the aisle where it lies."""
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
        here = sorted(item for item, aisle in self.stock.items() if aisle == self.at)
        far = [f"{item} {aisle}" for item, aisle in self.stock.items() if aisle != self.at]
        held = f"{self.hold} {_how(self.wrapped)}" if self.hold else "nothing"
        return " ; ".join(
            [
                f"at {self.at}",
                f"here {' '.join(here) or 'nothing'}",
                f"hold {held}",
                f"label {self.label or 'nothing'}",
                f"far {' , '.join(far) or 'nothing'}",
            ]
        )

    def packed(self) -> str:
        """What is in the box."""
        return f"box {' , '.join(f'{item} {_how(wrapped)}' for item, wrapped in self.box) or 'nothing'}"

    def _go(self, place: str) -> bool:
        if place not in (*AISLES, "bench", "dock") or place == self.at:
            return False
        self.at = place
        return True

    def _take(self, item: str) -> bool:
        if self.stock.get(item) != self.at:
            return False
        if self.hold is not None:
            self.stock[self.hold] = self.at
        del self.stock[item]
        self.hold, self.wrapped = item, False
        return True

    def _wrap(self, item: str) -> bool:
        if self.at != "bench" or self.hold != item or self.wrapped:
            return False
        self.wrapped = True
        return True

    def _pack(self, item: str) -> bool:
        if self.at != "bench" or self.hold != item or item is None:
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

    def __str__(self) -> str:
        items = " , ".join(f"{item} {'gift' if gift else 'own'}" for item, gift in self.items.items())
        return f"order {items} ; due {'today' if self.urgent else 'later'}"

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
