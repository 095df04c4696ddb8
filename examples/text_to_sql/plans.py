"""Plans: what the analyst and the reviewer write, and the SQL that a plan stands for.

    albums artists ; genre , count(*) ; artist = 'Iris' and year > 2004 ; group genre
    tables           columns            filters, or "all"                 then, if wanted: group, order or top

A plan says what a query must do and leaves SQL's grammar to the coder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

TABLES = frozenset({"artists", "albums", "tracks", "customers", "invoices"})
ENDINGS = {"group": "GROUP BY {}", "order": "ORDER BY {}", "top": "ORDER BY {} LIMIT 1"}
"""The last clause of a plan, and what it is in SQL."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One query in plain clauses."""

    tables: tuple[str, ...]
    """Joined in this order."""
    columns: str
    filters: tuple[str, ...] = ()
    """All must hold."""
    ending: str | None = None
    """One of `ENDINGS` and what it is about: ``order year desc``."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The plan that a text stands for, or None if it is none."""
        clauses = text.split(" ; ")
        if len(clauses) not in (3, 4):
            return None
        tables = tuple(clauses[0].split())
        ending = clauses[3] if len(clauses) == 4 else None
        if not tables or not TABLES.issuperset(tables):
            return None
        if ending is not None and ending.partition(" ")[0] not in ENDINGS:
            return None
        return cls(tables, clauses[1], () if clauses[2] == "all" else tuple(clauses[2].split(" and ")), ending)

    def __str__(self) -> str:
        clauses = [" ".join(self.tables), self.columns, " and ".join(self.filters) or "all"]
        return " ; ".join([*clauses, self.ending] if self.ending else clauses)

    @property
    def sql(self) -> str:
        """The query."""
        parts = [f"SELECT {self.columns} FROM {' NATURAL JOIN '.join(self.tables)}"]
        if self.filters:
            parts.append(f"WHERE {' AND '.join(self.filters)}")
        if self.ending:
            kind, _, about = self.ending.partition(" ")
            parts.append(ENDINGS[kind].format(about))
        return " ".join(parts)

    @property
    def ordered(self) -> bool:
        """True when the order of the rows matters."""
        return self.ending is not None and not self.ending.startswith("group ")
