"""The shop's database, and `run_sql`: how the agents' queries are run on it, safely.

    artists ─< albums ─< tracks        customers ─< invoices

The database is an ordinary SQLite file made from a fixed seed, so that every machine has the same rows. Tables that
belong together share exactly one column name, which is why `NATURAL JOIN` joins them.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

DATABASE = Path(os.environ.get("SHOP_DATABASE") or Path(__file__).with_name("shop.db"))
"""Where the database lies; it is made when it is first needed."""

MAX_ROWS = 500
"""A query that gives more rows is an error."""
MAX_SECONDS = 1.0
MAX_INSTRUCTIONS = 2_000_000
"""Steps of SQLite's virtual machine: unlike seconds, the same on every machine."""
MAX_VALUE_BYTES = 100_000
"""The longest text or blob that a query may make."""

GENRES = ("Blues", "Folk", "Jazz", "Metal", "Pop", "Rock")
COUNTRIES = (
    *("Brazil", "Canada", "France", "Germany", "India", "Japan"),
    *("Kenya", "Mexico", "Norway", "Peru", "Spain", "Sweden"),
)
CITIES = (
    *("Bergen", "Berlin", "Cusco", "Delhi", "Dakar", "Geneva", "Hanoi", "Havana", "Lagos", "Lima", "London", "Lyon"),
    *("Madrid", "Malmo", "Milan", "Nairobi", "Osaka", "Oslo", "Paris", "Quito", "Rio", "Seoul", "Tokyo", "Tunis"),
)
ARTISTS = (
    *("Abacus", "Bramble", "Cobalt", "Dunes", "Ember", "Falcon", "Garnet", "Halcyon", "Iris", "Juniper", "Kestrel"),
    *("Lantern", "Magnet", "Nimbus", "Onyx", "Pepper", "Quartz", "Raven", "Sable", "Tundra", "Umbra", "Velvet"),
    *("Willow", "Zephyr"),
)
CUSTOMERS = (
    *("Alice", "Bruno", "Carla", "David", "Elena", "Felix", "Gita", "Hugo", "Ines", "Jonas", "Karin", "Luis"),
    *("Maria", "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Sven", "Tomas", "Uma", "Vera", "Wanda", "Yusuf"),
)
ALBUM_YEARS = tuple(range(2001, 2013))
SALE_YEARS = tuple(range(2015, 2025))
PRICES = (59, 79, 99, 119, 139, 159, 179, 199)
"""Cents."""

_SCHEMA = """
CREATE TABLE artists   (artist_id INTEGER PRIMARY KEY, artist TEXT, home TEXT);
CREATE TABLE albums    (album_id INTEGER PRIMARY KEY, artist_id INTEGER REFERENCES artists, album TEXT,
                        year INTEGER, genre TEXT);
CREATE TABLE tracks    (track_id INTEGER PRIMARY KEY, album_id INTEGER REFERENCES albums, track TEXT,
                        seconds INTEGER, price INTEGER);
CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, customer TEXT, city TEXT, country TEXT);
CREATE TABLE invoices  (invoice_id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers, sold INTEGER,
                        total REAL);
"""

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a query gave: rows, or the reason why there are none."""

    rows: tuple[Row, ...] | None
    error: str | None = None


def run_sql(sql: str, database: Path | None = None) -> Result:
    """Run one query of an agent on the database (default: the shop). Read-only, within the limits above, from any thread."""
    try:
        return Result(_rows(sql, database or DATABASE))
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return Result(None, f"{type(error).__name__}: {error}")


def same_result(one: Result, other: Result, *, ordered: bool) -> bool:
    """True when both ran and gave the same rows; their order counts only where the question asks for one."""
    if one.rows is None or other.rows is None:
        return False
    if ordered:
        return one.rows == other.rows
    return sorted(one.rows, key=_sort_key) == sorted(other.rows, key=_sort_key)


def build_database(path: Path) -> None:
    """Make the database file: whole or not at all, whoever else makes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        connection = sqlite3.connect(unfinished)
        connection.executescript(_SCHEMA)
        _fill(connection, random.Random(7))
        connection.commit()
        connection.close()
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _fill(connection: sqlite3.Connection, rng: random.Random) -> None:
    first = ("Blue", "Broken", "First", "Golden", "Hidden", "Last", "Lost", "Open", "Red", "Silent")
    second = ("Engine", "Forest", "Garden", "Harbor", "Letter", "Mirror", "River", "Signal", "Window", "Winter")
    titles = [f"{one} {two}" for one in first for two in second]
    albums: list[Row] = []
    tracks: list[Row] = []
    for artist_id, artist in enumerate(ARTISTS, 1):
        connection.execute("INSERT INTO artists VALUES (?, ?, ?)", (artist_id, artist, rng.choice(COUNTRIES)))
        seconds = iter(rng.sample(range(100, 430), 60))
        for year in rng.sample(ALBUM_YEARS, rng.randint(4, 7)):
            albums.append((len(albums) + 1, artist_id, rng.choice(titles), year, rng.choice(GENRES)))
            for _ in range(rng.randint(3, 8)):
                row = (len(tracks) + 1, len(albums), rng.choice(titles), next(seconds), rng.choice(PRICES))
                tracks.append(row)
    customers: list[Row] = []
    invoices: list[Row] = []
    for customer_id, name in enumerate((*CUSTOMERS, *(f"Guest{number}" for number in range(120))), 1):
        customers.append((customer_id, name, rng.choice(CITIES), rng.choice(COUNTRIES)))
        for _ in range(rng.randint(4, 14) if name in CUSTOMERS else rng.randint(1, 4)):
            invoices.append((len(invoices) + 1, customer_id, rng.choice(SALE_YEARS), round(rng.uniform(3, 95), 2)))
    connection.executemany("INSERT INTO albums VALUES (?, ?, ?, ?, ?)", albums)
    connection.executemany("INSERT INTO tracks VALUES (?, ?, ?, ?, ?)", tracks)
    connection.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", customers)
    connection.executemany("INSERT INTO invoices VALUES (?, ?, ?, ?)", invoices)


# A team asks the same few hundred queries again and again. Errors are not kept: one may be due to a busy machine.
@lru_cache(maxsize=20_000)
def _rows(sql: str, database: Path) -> tuple[Row, ...]:
    with _limited(_connection(database)) as connection:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise ValueError("no query: it gives no rows")
        rows = cursor.fetchmany(MAX_ROWS + 1)
        cursor.close()
    if len(rows) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} rows")
    return tuple(tuple(round(value, 4) if isinstance(value, float) else value for value in row) for row in rows)


_local = threading.local()


def _connection(database: Path) -> sqlite3.Connection:
    """This thread's connection."""
    connections: dict[Path, sqlite3.Connection] = _local.__dict__.setdefault("connections", {})
    if database not in connections:
        if not database.exists():
            build_database(database)
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(_only_reading)
        connections[database] = connection
    return connections[database]


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "random", "randomblob"}


def _only_reading(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    allowed = action in _READING and not (action == sqlite3.SQLITE_FUNCTION and name in _FORBIDDEN_FUNCTIONS)
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


@contextmanager
def _limited(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """End a query that works too long: SQLite asks the handler every so many instructions."""
    interval = 10_000
    asked = 0
    deadline = time.monotonic() + MAX_SECONDS

    def too_long() -> bool:
        nonlocal asked
        asked += 1
        return asked * interval > MAX_INSTRUCTIONS or time.monotonic() > deadline

    connection.set_progress_handler(too_long, interval)
    try:
        yield connection
    finally:
        connection.set_progress_handler(None, interval)


def _sort_key(row: Row) -> tuple[tuple[str, Any], ...]:
    """An order for rows of any types: numbers among themselves, text among itself."""
    return tuple(
        ("", 0) if value is None else ("number" if isinstance(value, int | float) else type(value).__name__, value)
        for value in row
    )
