"""A verifier says whether a program keeps its contract, and if not, why, with a counterexample where there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from contracts import Contract


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not proved."""

    problem: str
    line: int | None = None
    """Of the program."""
    counterexample: Mapping[str, int] = field(default_factory=dict)
    """Values for which it does not hold: arguments by name, and ``i@4`` for ``i`` at the head of the loop in line 4."""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.problem}{self._example()}"

    def _example(self) -> str:
        at_start = {name: value for name, value in self.counterexample.items() if "@" not in name}
        said = [", ".join(f"{name} = {value}" for name, value in at_start.items())] if at_start else []
        heads = dict.fromkeys(name.partition("@")[2] for name in self.counterexample if "@" in name)
        for line in heads:
            there = {name: value for name, value in self.counterexample.items() if name.endswith(f"@{line}")}
            values = ", ".join(f"{name.partition('@')[0]} = {value}" for name, value in there.items())
            said.append(f"at the head of the loop in line {line}: {values}")
        return f"\n  counterexample: {'; '.join(said)}" if said else ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a proof."""

    findings: tuple[Finding, ...]
    """Nothing if all is proved."""

    @property
    def proved(self) -> bool:
        """True when the program keeps its contract for all arguments, and ends."""
        return not self.findings

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "proved"


class Verifier(Protocol):
    """Proves programs of one language."""

    language: str
    """``python`` or ``rust``."""

    def verify(self, program: str, contract: Contract) -> Verdict:
        """Try to prove an agent's program. What is no program at all is not proved; the finding says why."""
        ...


def verifier_named(name: str) -> Verifier:
    """``z3`` or ``verus``.

    Raises:
        RuntimeError: there is none of this name, or it is not installed.
    """
    if name == "z3":
        from proving import Z3Verifier

        return Z3Verifier()
    if name == "verus":
        from verus import VerusVerifier

        return VerusVerifier()
    raise RuntimeError(f"There is no verifier {name!r}; there are z3 and verus.")


def chosen_verifier() -> Verifier:
    """The one that the environment variable ``VERIFIER`` names; z3 by default."""
    return verifier_named(os.environ.get("VERIFIER", "z3"))
