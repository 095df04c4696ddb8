"""The agency's catalogue: flights, hotels, events and cars, and `search`, the one tool that all workers have.

    city 'Oslo' , area sea , meals breakfast , sort noise      →  the quietest of the hotels that match

The rows are made from a fixed seed, so that every machine has the same. Among the rows that match the same filters another
one comes first for each way to sort: who sorts wrongly finds something else.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

CITIES = ("Bergen", "Cusco", "Dakar", "Geneva", "Lagos", "Lyon", "Malmo", "Milan", "Osaka", "Oslo", "Quito", "Seoul")
MONTHS = ("april", "may", "june", "july")
FILTERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "flights": {"origin": CITIES, "city": CITIES, "month": MONTHS, "stops": ("none", "one")},
    "hotels": {"city": CITIES, "area": ("sea", "centre", "hill"), "meals": ("breakfast", "dinner")},
    "events": {"city": CITIES, "month": MONTHS, "kind": ("jazz", "opera", "football", "chess", "theatre", "circus")},
    "cars": {"city": CITIES, "size": ("small", "large", "van"), "gear": ("automatic", "manual")},
}
"""Table → column → what it holds."""
SORTS: Mapping[str, tuple[str, ...]] = {
    "flights": ("price", "hours", "departs"),
    "hotels": ("price", "noise", "walk"),
    "events": ("price", "row", "starts"),
    "cars": ("price", "age", "fuel"),
}
"""Table → the columns of numbers; the lowest comes first."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "flights": ("Aurora", "Boreal", "Cirrus", "Delta", "Equator", "Falcon", "Glider", "Horizon", "Icarus"),
    "hotels": ("Astoria", "Belvedere", "Carlton", "Dorint", "Excelsior", "Florida", "Grand", "Hilltop", "Imperial"),
    "events": ("Apollo", "Bluenote", "Coliseum", "Dome", "Elysium", "Forum", "Gallery", "Hippodrome", "Island"),
    "cars": ("Alto", "Bravo", "Corsa", "Duster", "Escort", "Fiesta", "Golf", "Honda", "Impala"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One offer of the catalogue."""

    table: str
    number: int
    name: str
    filters: frozenset[tuple[str, str]]
    """Its columns and what they hold."""
    numbers: Mapping[str, int]
    """Column to sort by → its value."""


@lru_cache(maxsize=20_000)
def search(table: str, query: str) -> Row | None:
    """The first row of a table that matches; None where none does, or where the query is none.

    Args:
        table: One of `FILTERS`.
        query: ``column value`` clauses, all of which must hold, then ``sort column``; between them `` , ``.
    """
    clauses = [tuple(clause.split()) for clause in query.split(" , ")]
    if any(len(clause) != 2 for clause in clauses):
        return None
    *filters, (last, sort) = clauses
    if last != "sort" or sort not in SORTS[table] or not {column for column, _ in filters} <= FILTERS[table].keys():
        return None
    wanted = {(column, value.strip("'")) for column, value in filters}
    found = [row for row in _rows()[table] if wanted <= row.filters]
    return min(found, key=lambda row: (row.numbers[sort], row.number), default=None)


@lru_cache(maxsize=1)
def _rows() -> dict[str, list[Row]]:
    rng = random.Random(11)
    return {table: list(_table(table, rng)) for table in FILTERS}


def _table(table: str, rng: random.Random) -> Iterator[Row]:
    """Three rows for each combination of what the filters may hold; each of them comes first by another sort."""
    columns, count = FILTERS[table], itertools.count()
    for values in itertools.product(*columns.values()):
        first = rng.sample(range(3), 3)
        numbers = [sorted(rng.sample(range(10, 1000), 3)) for _ in SORTS[table]]
        for place, name in enumerate(rng.sample(NAMES[table], 3)):
            by_sort = {
                sort: low_to_high[(place - winner) % 3]
                for sort, low_to_high, winner in zip(SORTS[table], numbers, first, strict=True)
            }
            yield Row(table, next(count), name, frozenset(zip(columns, values, strict=True)), by_sort)
