"""Errors of the edge, as the server's own refusals."""

from __future__ import annotations

from coterie_server.refusals import Refused


class DoesNotFit(Refused):
    """A body or a query that does not fit its schema. The store has not seen it."""

    def __init__(self, problem: str) -> None:
        """Refuse; ``problem`` is a sentence that names the field."""
        super().__init__(422, "StoreError", f"{problem} Nothing was changed.")
