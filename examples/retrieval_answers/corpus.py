"""The corpus and its index: Markdown pages cut into passages, searched by words with SQLite's FTS5 and BM25.

By default the pages are Coterie's own documentation, in the checkout that this example is in; ``CORPUS`` names another folder. The
index is made in memory when it is first asked for, so it always says what the pages say.
"""

from __future__ import annotations

import functools
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs"
LONGEST = 1500
"""Characters of a passage; a longer section is cut between paragraphs."""
FOUND = 4
"""Passages that a search gives."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A section of a page, or a part of one."""

    id: str
    """How it is cited: ``operations#limits``, ``operations#limits-2``."""
    title: str
    text: str

    def __str__(self) -> str:
        return f"[{self.id}] {self.title}\n{self.text}"


class Index:
    """Passages that can be searched."""

    def __init__(self, folder: Path) -> None:
        """Read all pages below a folder.

        Raises:
            RuntimeError: there are none.
        """
        passages = [passage for page in sorted(folder.rglob("*.md")) for passage in cut(page, folder)]
        if not passages:
            raise RuntimeError(f"There are no Markdown pages in {folder}. Name a folder of pages in CORPUS.")
        self._passages = {passage.id: passage for passage in passages}
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(id UNINDEXED, title, text, tokenize='porter unicode61')"
        )
        rows = [(passage.id, passage.title, passage.text) for passage in self._passages.values()]
        self._base.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        self._base.commit()

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages.values())

    def get(self, id_: str) -> Passage | None:
        """The passage of this id."""
        return self._passages.get(id_.strip().strip("[]"))

    def search(self, query: str, limit: int = FOUND) -> list[Passage]:
        """The best passages for some words, best first; words in quotes must stand side by side. None if there are no words."""
        parts = (" ".join(re.findall(r"\w+", part)) for part in re.findall(r'"[^"\n]+"|\w+', query))
        words = [part for part in parts if part][:40]
        if not words:
            return []
        # Each is quoted, so nothing of it is an operator of FTS5's.
        match = " OR ".join(f'"{word}"' for word in words)
        found = self._base.execute(
            "SELECT id FROM passages WHERE passages MATCH ? ORDER BY bm25(passages, 0, 3, 1), id LIMIT ?",
            (match, limit),
        )
        return [self._passages[row[0]] for row in found]


@functools.cache
def index() -> Index:
    """The index of the corpus."""
    return Index(Path(os.environ.get("CORPUS", PAGES)))


def cut(page: Path, folder: Path) -> Iterator[Passage]:
    """The passages of a page."""
    name = page.relative_to(folder).with_suffix("").as_posix()
    used: dict[str, int] = {}
    for heading, body in _sections(page.read_text(encoding="utf-8")):
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "top"
        for part in _parts(body):
            used[slug] = used.get(slug, 0) + 1
            id_ = f"{name}#{slug}" if used[slug] == 1 else f"{name}#{slug}-{used[slug]}"
            yield Passage(id_, f"{name}: {heading}", part)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and what stands under it; a ``#`` in a code block is no heading."""
    heading, lines, code = "", [], False
    for line in text.splitlines():
        code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not code:
            yield heading, "\n".join(lines)
            heading, lines = line.lstrip("# ").strip(), []
        else:
            lines.append(line)
    yield heading, "\n".join(lines)


def _parts(body: str) -> Iterator[str]:
    part = ""
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        if part and len(part) + len(paragraph) > LONGEST:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}".strip()
    if part:
        yield part
