"""The index of the words that were said: which spans may hold some words, so that a search need not read them all.

It is made when a text is first searched for, from the oldest span to the newest, a portion at a time; who adds spans does
nothing for it. What it does not cover yet, the search reads. It gives spans that *may* fit, and who searches looks at
each of them: so it decides how long a search takes, and never what it finds. It holds no record of its own, and can be
dropped at any time.

On SQLite it is a full-text table without a copy of the texts (FTS5). From that a single span cannot be removed: what is
left of removed spans is passed over, and when it is more than what is alive, the index is made anew. On PostgreSQL it is a
table of word lists with a GIN index, from which a span's row goes with the span.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Select, TextClause, bindparam, column, select, table, text
from sqlalchemy.dialects import postgresql

from coterie.store import arrival
from coterie.store.executing import change, change_each, fetch, first
from coterie.store.locks import is_postgresql, lock_name
from coterie.store.tables import SPANS
from coterie.store.writer import Transaction

SPANS_AT_ONCE = 200
"""Spans that one transaction adds to the index. Others wait for it, about 20 ms."""
LONGEST_WORD = 100
"""Characters of a word that count in the index."""
REMOVED_AT_LEAST = 10_000
"""So many spans must have been removed before the index is made anew."""


def index_on(transaction: Transaction, words_of: Callable[[Any], Iterable[str]], count: int = SPANS_AT_ONCE) -> bool:
    """Add the next spans to the index; True if there are more. ``words_of`` gives the words of a span's row."""
    connection = transaction.connection
    lock_name(connection, "text index")
    if not can_be_made(connection):
        return False
    if not is_made(connection):
        for statement in _MAKE[connection.dialect.name]:
            change(connection, statement)
    if not is_postgresql(connection) and fetch(connection, _MOSTLY_REMOVED):
        change(connection, _EMPTY)
        change(connection, _FORGET)
    until = fetch(connection, _UNTIL[connection.dialect.name])[0].seq
    end = arrival.settled(connection, SPANS) if is_postgresql(connection) else _LAST
    rows = fetch(connection, _NEXT, {"until": until, "end": end, "rows": count})
    if not rows:
        return False
    cut = [(row.seq, _cut(words_of(row))) for row in rows]
    if is_postgresql(connection):
        change_each(connection, _ADD_LISTS, [{"seq": seq, "words": words} for seq, words in cut])
    else:
        change_each(connection, _ADD_TEXTS, [{"seq": seq, "words": " ".join(words)} for seq, words in cut])
        change(connection, _SET_STATE, {"until": rows[-1].seq, "added": len(rows)})
    return len(rows) == count


def indexed_until(connection: Connection) -> int | None:
    """The number of the last span that the index covers; None when there is no index to use."""
    if not (can_be_made(connection) and is_made(connection)):
        return None
    until: int = fetch(connection, _UNTIL[connection.dialect.name])[0].seq
    return until


def behind(connection: Connection) -> bool:
    """True when there are spans that the index does not cover and could."""
    if not can_be_made(connection):
        return False
    until = indexed_until(connection)
    return first(connection, _NEXT, {"until": until or 0, "end": _LAST, "rows": 1}) is not None


def may_hold(
    connection: Connection, statement: Select[Any], words: Collection[str]
) -> tuple[Select[Any], ColumnElement[int]]:
    """A statement on spans, with the condition that the index has all these words of them; and what to order it by."""
    cut = _cut(words)
    if is_postgresql(connection):
        has_words = _WORDS.c.words.contains(bindparam("words", cut, type_=_WORD_LIST))
        return statement.join(_WORDS, _WORDS.c.seq == SPANS.c.seq).where(has_words), SPANS.c.seq
    # Words have only letters and digits, so nothing in quotes means anything to the query language.
    query = " AND ".join(f'"{word}"' for word in cut)
    matches = text("span_words MATCH :query").bindparams(query=query)
    # By its own row numbers, and not by the spans', FTS5 gives one hit after another instead of all at once.
    return statement.join(_HITS, _HITS.c.rowid == SPANS.c.seq).where(matches), _HITS.c.rowid


def can_be_made(connection: Connection) -> bool:
    """False for the rare SQLite that was built without FTS5."""
    return is_postgresql(connection) or bool(fetch(connection, _HAS_FTS5))


def is_made(connection: Connection) -> bool:
    """True when there is an index, though it may not cover all spans."""
    return bool(fetch(connection, _IS_MADE[connection.dialect.name]))


def _cut(words: Iterable[str]) -> list[str]:
    return sorted({word[:LONGEST_WORD] for word in words})


_LAST = 2**63 - 1
_WORD_LIST = postgresql.ARRAY(postgresql.TEXT)
_WORDS = table("span_words", column("seq", BigInteger), column("words", _WORD_LIST))
_HITS = table("span_words", column("rowid", BigInteger))


def mostly_removed(at_least: int) -> TextClause:
    """Gives a row when the index should be made anew."""
    return text(f"SELECT 1 FROM text_index WHERE removed > max({int(at_least)}, spans - removed)")  # noqa: S608


_MOSTLY_REMOVED = mostly_removed(REMOVED_AT_LEAST)
_HAS_FTS5 = text("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'")
_IS_MADE = {
    "sqlite": text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'text_index'"),
    "postgresql": text("SELECT 1 WHERE to_regclass('span_words') IS NOT NULL"),
}
_UNTIL = {
    "sqlite": text("SELECT until_seq AS seq FROM text_index"),
    "postgresql": text("SELECT coalesce(max(seq), 0) AS seq FROM span_words"),
}
_NEXT = (
    select(SPANS)
    .where(SPANS.c.seq > bindparam("until"), SPANS.c.seq <= bindparam("end"))
    .order_by(SPANS.c.seq)
    .limit(bindparam("rows"))
)
_ADD_TEXTS = text("INSERT INTO span_words (rowid, words) VALUES (:seq, :words)")
_ADD_LISTS = postgresql.insert(_WORDS)
_SET_STATE = text("UPDATE text_index SET until_seq = :until, spans = spans + :added")
_EMPTY = text("INSERT INTO span_words (span_words) VALUES ('delete-all')")
_FORGET = text("UPDATE text_index SET until_seq = 0, spans = 0, removed = 0")

_MAKE = {
    "sqlite": (
        text("CREATE TABLE text_index (until_seq INTEGER NOT NULL, spans INTEGER NOT NULL, removed INTEGER NOT NULL)"),
        text("INSERT INTO text_index VALUES (0, 0, 0)"),
        text(
            "CREATE VIRTUAL TABLE span_words USING fts5(words, content='', columnsize=0, detail=none, tokenize='ascii')"
        ),
        # A number is given out again when the spans with the greatest ones were removed.
        text(
            "CREATE TRIGGER span_removed AFTER DELETE ON spans BEGIN UPDATE text_index SET removed = removed + 1, "
            "until_seq = min(until_seq, coalesce((SELECT max(seq) FROM spans), 0)); END"
        ),
    ),
    "postgresql": (
        text(
            "CREATE TABLE span_words "
            "(seq int8 PRIMARY KEY REFERENCES spans (seq) ON DELETE CASCADE, words text[] NOT NULL)"
        ),
        text("CREATE INDEX ix_span_words ON span_words USING gin (words)"),
    ),
}
