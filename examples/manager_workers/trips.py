"""The requests: trips of three or four parts, each with its gold briefs.

The splits are apart by brief: what a worker is to find for a trip of ``val`` or ``test``, it never finds for one of ``train``.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from briefs import SLOTS, Brief
from catalogue import CITIES, MONTHS

SIZES = {"train": 1000, "val": 60, "test": 100}
"""Trips a split."""
SPLITS = tuple(SIZES)
FAMILIES = (
    *(("flights", "hotels", "cars"), ("flights", "hotels", "events"), ("hotels", "events", "cars")),
    *(("flights", "events", "cars"), ("flights", "hotels", "events", "cars")),
)
"""The parts that a trip may have."""

SAYINGS = {
    "flights": {
        "cheap": ("low-fare", "inexpensive"),
        "quick": ("fast", "speedy"),
        "early": ("at-dawn", "first-thing"),
        "direct": ("non-stop", "straight"),
        "broken": ("one-stop", "stopover"),
    },
    "hotels": {
        "cheap": ("budget", "affordable"),
        "quiet": ("silent", "calm"),
        "near": ("close", "handy"),
        "sea": ("beach", "waterfront"),
        "centre": ("downtown", "old-town"),
        "hill": ("view", "upland"),
        "breakfast": ("morning-meal", "b&b"),
        "dinner": ("half-board", "supper"),
    },
    "events": {
        "cheap": ("discount", "low-price"),
        "front": ("best-seat", "stalls"),
        "early": ("matinee", "afternoon"),
        "jazz": ("saxophone", "swing"),
        "opera": ("arias", "singing"),
        "football": ("soccer", "match"),
        "chess": ("board-game", "grandmaster"),
        "theatre": ("play", "drama"),
        "circus": ("acrobats", "clowns"),
    },
    "cars": {
        "cheap": ("bargain", "low-rate"),
        "new": ("modern", "recent"),
        "thrifty": ("frugal", "economical"),
        "small": ("compact", "mini"),
        "large": ("big", "family"),
        "van": ("minibus", "seven-seat"),
        "automatic": ("no-clutch", "auto"),
        "manual": ("stick", "gears"),
    },
}
"""Worker → a word of its briefs → how customers say it, in the two wordings."""
PARTS = {
    "flights": ("fly", "flight"),
    "hotels": ("sleep", "room"),
    "events": ("see", "evening"),
    "cars": ("drive", "car"),
}
"""A worker → how customers begin its part."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request with its gold briefs."""

    id: str
    text: str
    briefs: tuple[Brief, ...]

    @property
    def task(self) -> dict[str, Any]:
        """The line of the data file."""
        workers = [brief.worker for brief in self.briefs]
        return {
            "id": self.id,
            "input": {"request": self.text},
            "reference": {"briefs": [str(brief) for brief in self.briefs]},
            "metadata": {"family": "+".join(workers), "difficulty": len(workers)},
        }


def make_splits() -> dict[str, list[Request]]:
    """The requests of each split. The same on every call."""
    return {split: list(_requests(split, size)) for split, size in SIZES.items()}


def write_tasks(requests: Iterable[Request], path: Path) -> None:
    """Write a data file: one task a line."""
    path.write_text("".join(json.dumps(request.task) + "\n" for request in requests))


def split_of(brief: Brief) -> str:
    """The split that a brief belongs to. Where a flight begins does not count."""
    words = brief.words[1:] if brief.worker == "flights" else brief.words
    return _wishes()[brief.worker, words]


def _requests(split: str, size: int) -> Iterable[Request]:
    rng = random.Random(f"trips of {split}")
    seen: set[tuple[Brief, ...]] = set()
    for number in itertools.count():
        if len(seen) == size:
            return
        workers = FAMILIES[len(seen) % len(FAMILIES)]
        briefs = _briefs(workers, split, rng)
        if briefs not in seen:
            seen.add(briefs)
            yield Request(f"{split}-{number}", _text(briefs, number // len(FAMILIES) % 2), briefs)


def _briefs(workers: Sequence[str], split: str, rng: random.Random) -> tuple[Brief, ...]:
    city, month = rng.choice(CITIES), rng.choice(MONTHS)
    origin = rng.choice([other for other in CITIES if other != city])
    briefs = []
    for worker in workers:
        places = (f"'{city}'", month) if "month" in SLOTS[worker] else (f"'{city}'",)
        wishes = [
            words
            for (of, words), belongs in _wishes().items()
            if of == worker and belongs == split and words[: len(places)] == places
        ]
        start = (f"'{origin}'",) if worker == "flights" else ()
        briefs.append(Brief(worker, (*start, *rng.choice(wishes))))
    return tuple(briefs)


@lru_cache(maxsize=1)
def _wishes() -> dict[tuple[str, tuple[str, ...]], str]:
    """Worker and all words of a brief but a flight's origin → the split. Each place and month has wishes of each split."""
    wishes = {}
    for worker, slots in SLOTS.items():
        names = [name for name in slots if name != "origin"]
        places = 2 if "month" in names else 1
        for where in itertools.product(*(slots[name] for name in names[:places])):
            combinations = list(itertools.product(*(slots[name] for name in names[places:])))
            random.Random(f"split of {worker} {where}").shuffle(combinations)
            held_out = max(1, len(combinations) // 6)
            for number, words in enumerate(combinations):
                split = "test" if number < held_out else "val" if number == held_out else "train"
                wishes[worker, (*where, *words)] = split
    return wishes


def _text(briefs: Sequence[Brief], wording: int) -> str:
    """What a customer writes; the second wording names the place last and each part's wishes backwards."""
    parts = []
    for brief in briefs:
        sayings = SAYINGS[brief.worker]
        wishes = [sayings[word][wording] for word in brief.words if word in sayings]
        parts.append(" ".join([PARTS[brief.worker][wording], *(wishes[::-1] if wording else wishes)]))
    where = next(word for word in briefs[-1].words if word.startswith("'"))
    flight = next((brief for brief in briefs if brief.worker == "flights"), None)
    month = next((word for brief in briefs for word in brief.words if word in MONTHS), MONTHS[0])
    if flight is not None:
        start, where = flight.words[:2]
        place = f"to {where} in {month} from {start}" if wording else f"from {start} to {where} in {month}"
    else:
        place = f"in {where} in {month}"
    return f"trip {place} : {' , '.join(parts)}" if wording == 0 else f"wanted : {' , '.join(parts)} ; {place}"
