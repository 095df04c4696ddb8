from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import database
import pytest
from database import Result, build_database, run_sql, same_result


@pytest.mark.parametrize(
    "attack",
    [
        "DROP TABLE artists",
        "DELETE FROM artists",
        "INSERT INTO artists VALUES (99, 'Mallory', 'Peru')",
        "UPDATE tracks SET price = 0",
        "CREATE TABLE mine (x)",
        "CREATE TEMP TABLE mine (x)",
        "ATTACH DATABASE 'other.db' AS other",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = WAL",
        "VACUUM INTO 'copy.db'",
        "BEGIN",
        "SELECT load_extension('evil')",
        "SELECT 1; DROP TABLE artists",
    ],
)
def test_nothing_but_reading_is_allowed(attack: str, shop: Path) -> None:
    before = hashlib.sha256(shop.read_bytes()).hexdigest()
    result = run_sql(attack)
    assert result.rows is None
    assert result.error
    assert hashlib.sha256(shop.read_bytes()).hexdigest() == before
    assert run_sql("SELECT count(*) FROM artists").rows == ((len(database.ARTISTS),),)


@pytest.mark.parametrize(
    ("greedy", "reason"),
    [
        ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c", "interrupted"),
        ("SELECT count(*) FROM tracks a, tracks b, tracks c, tracks d", "interrupted"),
        ("SELECT a.track FROM tracks a, tracks b", "more than 500 rows"),
        ("SELECT zeroblob(1000000000)", "too big"),
    ],
)
def test_greedy_queries_end_soon(greedy: str, reason: str) -> None:
    started = time.monotonic()
    result = run_sql(greedy)
    assert time.monotonic() - started < database.MAX_SECONDS + 2
    assert result.rows is None
    assert reason in (result.error or "")
    assert run_sql("SELECT 1").rows == ((1,),)


@pytest.mark.parametrize("rubbish", ["", "ok", "SELECT", "SELECT nothing FROM nowhere", "SELECT 'a\0b'", "\ud800"])
def test_rubbish_is_an_error_and_no_exception(rubbish: str) -> None:
    result = run_sql(rubbish)
    assert result.rows is None
    assert result.error


def test_random_numbers_cannot_be_guessed_with() -> None:
    assert run_sql("SELECT random()").rows is None


def test_many_threads_at_once() -> None:
    wanted = {year: run_sql(f"SELECT count(*) FROM albums WHERE year = {year}").rows for year in database.ALBUM_YEARS}
    wrong: list[int] = []

    def ask(worker: int) -> None:
        # Distinct texts, so that each thread really runs its queries.
        query = f"SELECT count(*) FROM albums WHERE {worker} = {worker} AND year = "
        wrong.extend(year for year in database.ALBUM_YEARS if run_sql(f"{query}{year}").rows != wanted[year])

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert wrong == []


def test_order_counts_only_where_the_question_orders() -> None:
    up = run_sql("SELECT DISTINCT year FROM albums ORDER BY year")
    down = run_sql("SELECT DISTINCT year FROM albums ORDER BY year DESC")
    assert same_result(up, down, ordered=False)
    assert not same_result(up, down, ordered=True)


def test_repeated_rows_count() -> None:
    assert not same_result(Result(((1,), (1,))), Result(((1,),)), ordered=False)


def test_mixed_types_compare() -> None:
    one = Result(((None, "a"), (2, 1.5)))
    assert same_result(one, Result(((2, 1.5), (None, "a"))), ordered=False)
    assert not same_result(one, Result(((2, 1.5), (0, "a"))), ordered=False)


def test_two_errors_are_not_the_same_result() -> None:
    assert not same_result(run_sql("rubbish"), run_sql("rubbish"), ordered=False)


def test_the_same_rows_on_every_build(tmp_path: Path) -> None:
    dumps: list[list[str]] = []
    for name in ("one.db", "two.db"):
        build_database(tmp_path / name)
        connection = sqlite3.connect(tmp_path / name)
        dumps.append(list(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.db", "two.db"]


def test_a_missing_database_is_made_once_by_whoever_needs_it_first(tmp_path: Path) -> None:
    path = tmp_path / "new" / "shop.db"
    results: list[Result] = []
    ask: Callable[[], None] = lambda: results.append(run_sql("SELECT count(*) FROM customers", path))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(results) == 4
    assert len({result.rows for result in results}) == 1
    assert results[0].rows
    assert [entry.name for entry in path.parent.iterdir()] == ["shop.db"]
