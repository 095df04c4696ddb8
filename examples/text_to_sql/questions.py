"""The questions: sixteen families of rising difficulty, each with its gold plan and the ways to misread it.

Difficulty 1 filters, 2 joins, 3 aggregates, 4 groups, 5 orders. The splits are apart by gold query: no query that
answers a question of ``val`` or ``test`` answers one of ``train``.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from database import (
    ALBUM_YEARS,
    ARTISTS,
    CITIES,
    COUNTRIES,
    CUSTOMERS,
    GENRES,
    PRICES,
    SALE_YEARS,
    Result,
    run_sql,
    same_result,
)
from plans import Plan

LENGTHS = tuple(range(120, 420, 12))
"""Seconds."""
TOTALS = tuple(range(10, 90, 5))

TEST_QUERIES = 6
"""Gold queries a family in the test split; each has two questions."""
VAL_QUERIES = 3
SPLITS = ("train", "val", "test")

PlanOf = Callable[..., Plan]
"""Slot values to a plan."""


@dataclass(frozen=True, slots=True)
class Family:
    """Questions of one shape."""

    name: str
    difficulty: int
    wordings: tuple[str, str]
    slots: tuple[Sequence[str | int], ...]
    """The values that each slot may take."""
    gold: PlanOf
    misreadings: tuple[PlanOf, ...]
    """What a hasty reader would plan instead, the most tempting first."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer."""

    id: str
    family: Family
    values: tuple[str | int, ...]
    text: str
    gold: Plan

    @property
    def answer(self) -> Result:
        """The gold rows."""
        return run_sql(self.gold.sql)

    @property
    def task(self) -> dict[str, Any]:
        """The line of the data file."""
        return {
            "id": self.id,
            "input": {"question": self.text},
            "reference": {"sql": self.gold.sql, "ordered": self.gold.ordered},
            "metadata": {"family": self.family.name, "difficulty": self.family.difficulty},
        }


def make_splits() -> dict[str, list[Question]]:
    """All questions worth asking, split by gold query. The same on every call."""
    splits: dict[str, list[Question]] = {name: [] for name in SPLITS}
    for family in FAMILIES:
        by_query: dict[str, list[Question]] = defaultdict(list)
        for question in _questions(family):
            by_query[question.gold.sql].append(question)
        queries = list(by_query)
        random.Random(f"split of {family.name}").shuffle(queries)
        for number, query in enumerate(queries):
            held_out = "test" if number < TEST_QUERIES else "val" if number < TEST_QUERIES + VAL_QUERIES else "train"
            splits[held_out] += by_query[query]
    return splits


def write_tasks(questions: Iterable[Question], path: Path) -> None:
    """Write a data file: one task a line."""
    path.write_text("".join(json.dumps(question.task) + "\n" for question in questions))


def _questions(family: Family) -> Iterable[Question]:
    for number, values in enumerate(itertools.product(*family.slots)):
        literals = [f"'{value}'" if isinstance(value, str) else str(value) for value in values]
        gold = family.gold(*literals)
        if _worth_asking(gold, [misread(*literals) for misread in family.misreadings]):
            for wording, text in enumerate(family.wordings):
                yield Question(f"{family.name}-{number}-{wording}", family, values, text.format(*literals), gold)


def _worth_asking(gold: Plan, misreadings: Sequence[Plan]) -> bool:
    """True when there is something to find and no misreading finds it by luck."""
    answer = run_sql(gold.sql)
    if answer.rows is None:
        raise ValueError(f"gold query fails: {gold.sql}: {answer.error}")
    if not answer.rows or answer.rows in (((None,),), ((0,),)):
        return False
    if gold.ending is not None and not gold.ending.startswith("top ") and len(answer.rows) < 2:
        return False
    return not any(same_result(run_sql(plan.sql), answer, ordered=gold.ordered) for plan in misreadings)


_ALBUM = ("albums",)
_ALBUM_ARTIST = ("albums", "artists")
_TRACK_ALBUM = ("tracks", "albums")
_TRACK_ARTIST = ("tracks", "albums", "artists")
_TRACK = ("tracks",)
_INVOICE = ("invoices",)
_SALE = ("invoices", "customers")

FAMILIES: tuple[Family, ...] = (
    Family(
        "cheap_long_songs",
        1,
        ("how many tracks below {0} cents run over {1} seconds?", "count songs cheaper than {0} and longer than {1}?"),
        (PRICES, LENGTHS),
        lambda price, length: Plan(_TRACK, "count(*)", (f"price < {price}", f"seconds > {length}")),
        (
            lambda price, length: Plan(_TRACK, "count(*)", (f"price > {price}", f"seconds > {length}")),
            lambda price, length: Plan(_TRACK, "count(*)", (f"price < {price}", f"seconds < {length}")),
        ),
    ),
    Family(
        "bills_above",
        1,
        ("how many bills above {0} in {1}?", "count invoices over {0} for {1}?"),
        (TOTALS, SALE_YEARS),
        lambda total, year: Plan(_INVOICE, "count(*)", (f"total > {total}", f"sold = {year}")),
        (
            lambda total, year: Plan(_INVOICE, "sum(total)", (f"total > {total}", f"sold = {year}")),
            lambda total, year: Plan(_INVOICE, "count(*)", (f"total < {total}", f"sold = {year}")),
        ),
    ),
    Family(
        "records_since",
        1,
        ("how many {0} albums came out after {1}?", "count {0} records since {1}?"),
        (GENRES, ALBUM_YEARS),
        lambda genre, year: Plan(_ALBUM, "count(*)", (f"genre = {genre}", f"year > {year}")),
        (
            lambda genre, year: Plan(_ALBUM, "count(*)", (f"genre = {genre}", f"year < {year}")),
            lambda genre, year: Plan(_ALBUM, "count(*)", (f"genre = {genre}", f"year = {year}")),
        ),
    ),
    Family(
        "short_songs",
        2,
        ("how many {1} tracks run under {0} seconds?", "count {1} songs shorter than {0}?"),
        (LENGTHS, GENRES),
        lambda length, genre: Plan(_TRACK_ALBUM, "count(*)", (f"seconds < {length}", f"genre = {genre}")),
        (
            lambda length, genre: Plan(_TRACK_ALBUM, "count(*)", (f"seconds > {length}", f"genre = {genre}")),
            lambda _, genre: Plan(_TRACK_ALBUM, "count(*)", (f"genre = {genre}",)),
        ),
    ),
    Family(
        "cheap_songs",
        2,
        ("how many {1} tracks cost less than {0} cents?", "count {1} songs cheaper than {0}?"),
        (PRICES, GENRES),
        lambda price, genre: Plan(_TRACK_ALBUM, "count(*)", (f"price < {price}", f"genre = {genre}")),
        (
            lambda price, genre: Plan(_TRACK_ALBUM, "count(*)", (f"seconds < {price}", f"genre = {genre}")),
            lambda price, genre: Plan(_TRACK_ALBUM, "count(*)", (f"price > {price}", f"genre = {genre}")),
        ),
    ),
    Family(
        "artist_since",
        2,
        ("how many albums did {0} make after {1}?", "count records of {0} since {1}?"),
        (ARTISTS, ALBUM_YEARS),
        lambda artist, year: Plan(_ALBUM_ARTIST, "count(*)", (f"artist = {artist}", f"year > {year}")),
        (
            lambda artist, year: Plan(_ALBUM_ARTIST, "count(*)", (f"artist = {artist}", f"year < {year}")),
            lambda artist, _: Plan(_ALBUM_ARTIST, "count(*)", (f"artist = {artist}",)),
        ),
    ),
    Family(
        "average_length",
        3,
        ("how long is a typical track by {0}?", "average length of songs of {0}?"),
        (ARTISTS,),
        lambda artist: Plan(_TRACK_ARTIST, "avg(seconds)", (f"artist = {artist}",)),
        (
            lambda artist: Plan(_TRACK_ARTIST, "avg(price)", (f"artist = {artist}",)),
            lambda artist: Plan(_TRACK_ARTIST, "sum(seconds)", (f"artist = {artist}",)),
        ),
    ),
    Family(
        "biggest_bill",
        3,
        ("what was the biggest invoice of {0}?", "highest bill of customer {0}?"),
        (CUSTOMERS,),
        lambda customer: Plan(_SALE, "max(total)", (f"customer = {customer}",)),
        (
            lambda customer: Plan(_SALE, "sum(total)", (f"customer = {customer}",)),
            lambda customer: Plan(_SALE, "min(total)", (f"customer = {customer}",)),
        ),
    ),
    Family(
        "customer_sales",
        3,
        ("how much did {0} spend in {1}?", "total sales to {0} for {1}?"),
        (CUSTOMERS, SALE_YEARS),
        lambda customer, year: Plan(_SALE, "sum(total)", (f"customer = {customer}", f"sold = {year}")),
        (
            lambda customer, year: Plan(_SALE, "count(*)", (f"customer = {customer}", f"sold = {year}")),
            lambda customer, _: Plan(_SALE, "sum(total)", (f"customer = {customer}",)),
        ),
    ),
    Family(
        "country_sales",
        3,
        ("how much did buyers from {0} spend in {1}?", "total sales in {0} for {1}?"),
        (COUNTRIES, SALE_YEARS),
        lambda country, year: Plan(_SALE, "sum(total)", (f"country = {country}", f"sold = {year}")),
        (
            lambda country, year: Plan(_SALE, "max(total)", (f"country = {country}", f"sold = {year}")),
            lambda country, _: Plan(_SALE, "sum(total)", (f"country = {country}",)),
        ),
    ),
    Family(
        "records_by_genre",
        4,
        ("how many albums of each genre did {0} make?", "records of {0} by genre?"),
        (ARTISTS,),
        lambda artist: Plan(_ALBUM_ARTIST, "genre , count(*)", (f"artist = {artist}",), "group genre"),
        (
            lambda artist: Plan(_ALBUM_ARTIST, "year , count(*)", (f"artist = {artist}",), "group year"),
            lambda artist: Plan(_ALBUM_ARTIST, "count(*)", (f"artist = {artist}",)),
        ),
    ),
    Family(
        "songs_by_genre",
        4,
        ("how many tracks of each genre run over {0} seconds?", "songs longer than {0} by genre?"),
        (LENGTHS,),
        lambda length: Plan(_TRACK_ALBUM, "genre , count(*)", (f"seconds > {length}",), "group genre"),
        (
            lambda length: Plan(_TRACK_ALBUM, "genre , count(*)", (f"seconds < {length}",), "group genre"),
            lambda length: Plan(_TRACK_ALBUM, "count(*)", (f"seconds > {length}",)),
        ),
    ),
    Family(
        "city_by_year",
        4,
        ("how much did buyers from {0} spend in each year after {1}?", "sales in {0} by year since {1}?"),
        (CITIES, SALE_YEARS),
        lambda city, year: Plan(_SALE, "sold , sum(total)", (f"city = {city}", f"sold > {year}"), "group sold"),
        (
            lambda city, year: Plan(_SALE, "sold , count(*)", (f"city = {city}", f"sold > {year}"), "group sold"),
            lambda city, year: Plan(_SALE, "sum(total)", (f"city = {city}", f"sold > {year}")),
        ),
    ),
    Family(
        "newest_record",
        5,
        ("what is the newest album of {0}?", "latest record by {0}?"),
        (ARTISTS,),
        lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "top year desc"),
        (
            lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "top year asc"),
            lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "order year desc"),
        ),
    ),
    Family(
        "longest_song",
        5,
        ("which track of {0} is the longest?", "the song by {0} with most seconds?"),
        (ARTISTS,),
        lambda artist: Plan(_TRACK_ARTIST, "track", (f"artist = {artist}",), "top seconds desc"),
        (
            lambda artist: Plan(_TRACK_ARTIST, "track", (f"artist = {artist}",), "top price desc"),
            lambda artist: Plan(_TRACK_ARTIST, "track", (f"artist = {artist}",), "top seconds asc"),
        ),
    ),
    Family(
        "records_in_order",
        5,
        ("list the albums of {0} from old to new?", "all records by {0} in order?"),
        (ARTISTS,),
        lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "order year asc"),
        (
            lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "order year desc"),
            lambda artist: Plan(_ALBUM_ARTIST, "album", (f"artist = {artist}",), "order album asc"),
        ),
    ),
)
