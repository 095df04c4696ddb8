"""What a warm start imitates. Apart from ``small_model``, so that an example's demonstrations can be made without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One call and the answer to imitate."""

    system: str
    user: str
    answer: str
