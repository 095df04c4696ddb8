"""How long work says what stage it is in and how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the loop; shown as bars on a terminal, as plain lines elsewhere."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; the one before it has ended. ``total`` is its number of units, if known."""

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        """Units done in the present stage, with figures to show beside (``success=0.41``)."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def warn(self, text: str) -> None:
        """A line that must not be overlooked."""

    def close(self) -> None:
        """The last stage has ended."""
