"""Briefs: what the manager gives to its workers, and the query that a brief stands for.

    flights 'Lyon' 'Oslo' may quick direct  ;  hotels 'Oslo' cheap sea breakfast  ;  …
    worker  one word for each of its slots

A brief says what is wanted in the agency's own words and leaves the catalogue's columns to the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from catalogue import CITIES, MONTHS

Slot = Mapping[str, str]
"""A word that may stand in the slot → the clause of the query that it means."""

_CITY: Slot = {f"'{city}'": f"city '{city}'" for city in CITIES}
_MONTH: Slot = {month: f"month {month}" for month in MONTHS}

SLOTS: Mapping[str, Mapping[str, Slot]] = {
    "flights": {
        "origin": {f"'{city}'": f"origin '{city}'" for city in CITIES},
        "city": _CITY,
        "month": _MONTH,
        "sort": {"cheap": "sort price", "quick": "sort hours", "early": "sort departs"},
        "stops": {"direct": "stops none", "broken": "stops one"},
    },
    "hotels": {
        "city": _CITY,
        "sort": {"cheap": "sort price", "quiet": "sort noise", "near": "sort walk"},
        "area": {"sea": "area sea", "centre": "area centre", "hill": "area hill"},
        "meals": {"breakfast": "meals breakfast", "dinner": "meals dinner"},
    },
    "events": {
        "city": _CITY,
        "month": _MONTH,
        "sort": {"cheap": "sort price", "front": "sort row", "early": "sort starts"},
        "kind": {kind: f"kind {kind}" for kind in ("jazz", "opera", "football", "chess", "theatre", "circus")},
    },
    "cars": {
        "city": _CITY,
        "sort": {"cheap": "sort price", "new": "sort age", "thrifty": "sort fuel"},
        "size": {"small": "size small", "large": "size large", "van": "size van"},
        "gear": {"automatic": "gear automatic", "manual": "gear manual"},
    },
}
"""Worker → its slots in order."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What one worker is to find."""

    worker: str
    words: tuple[str, ...]
    """One for each slot of the worker."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The brief that a text stands for, or None if it is none."""
        worker, *words = text.split() or [""]
        slots = SLOTS.get(worker, {}).values()
        if not slots or len(words) != len(slots):
            return None
        if any(word not in slot for word, slot in zip(words, slots, strict=True)):
            return None
        return cls(worker, tuple(words))

    def __str__(self) -> str:
        return " ".join([self.worker, *self.words])

    @property
    def query(self) -> str:
        """The query: the filters in the order of the slots, then how to sort."""
        clauses = [slot[word] for word, slot in zip(self.words, SLOTS[self.worker].values(), strict=True)]
        return " , ".join(sorted(clauses, key=lambda clause: clause.startswith("sort ")))


def briefs_of(split: str) -> dict[str, str]:
    """Worker → its brief's text, from what the manager wrote; what names no worker, or one a second time, is left out."""
    briefs: dict[str, str] = {}
    for text in split.split(" ; "):
        worker = text.split()[0] if text.split() else ""
        if worker in SLOTS:
            briefs.setdefault(worker, text.strip())
    return briefs
