"""Contracts: what a function asks of its arguments (``requires``) and promises about its ``result`` (``ensures``)."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expressions import ProgramError, check_size, read_expression

RESULT = "result"


@dataclass(frozen=True, slots=True)
class Contract:
    """Of one function. Each condition is an expression (``expressions.py``); in all of them names are the arguments' values."""

    name: str
    parameters: tuple[str, ...]
    requires: tuple[str, ...]
    ensures: tuple[str, ...]

    @classmethod
    def of_task(cls, signature: str, reference: Mapping[str, Sequence[str]]) -> Contract:
        """The contract that a task holds for its judge.

        Args:
            signature: Such as ``clamp(x, low, high)``.
            reference: ``requires`` and ``ensures``.
        """
        name, parameters = read_signature(signature)
        return cls(name, parameters, tuple(reference["requires"]), tuple(reference["ensures"]))

    @classmethod
    def parse(cls, signature: str, text: str) -> Contract:
        """A contract that an agent wrote: lines that begin with ``requires`` or ``ensures``; other lines are talk.

        Raises:
            ProgramError: there is no ``ensures``, or a condition is no expression.
        """
        name, parameters = read_signature(signature)
        clauses: dict[str, list[str]] = {"requires": [], "ensures": []}
        for line in text.splitlines():
            kind, _, condition = line.strip().strip("`-*").strip().partition(" ")
            kind = kind.rstrip(":")
            if kind in clauses and condition.strip():
                node = read_expression(condition.strip().strip("`").rstrip(",;"))
                check_size(node)
                clauses[kind].append(ast.unparse(node))
        if not clauses["ensures"]:
            raise ProgramError("the contract has no line that begins with `ensures`")
        return cls(name, parameters, tuple(clauses["requires"]), tuple(clauses["ensures"]))

    def __str__(self) -> str:
        return "\n".join(
            [*(f"requires {each}" for each in self.requires), *(f"ensures {each}" for each in self.ensures)]
        )


def read_signature(signature: str) -> tuple[str, tuple[str, ...]]:
    """Name and parameters of ``name(a, b)``."""
    name, _, rest = signature.partition("(")
    return name.strip(), tuple(part.strip() for part in rest.rstrip(")").split(",") if part.strip())
