"""Wrapping methods of a class and of those derived from it, which somebody else may have wrapped before."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any


def as_function(method: Any) -> Callable[..., Any]:
    """What stands in a class under a method's name, as a plain function that takes the object first.

    The wrappers of other instrumentors (those of ``wrapt``) know their object only if they are bound to it, as an
    attribute look-up does.
    """
    # isinstance would take such a wrapper for the function that is in it.
    if type(method) is FunctionType:
        return method

    @wraps(method)
    def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method.__get__(self, type(self))(*args, **kwargs)

    return bound


def derived_from(base: type) -> list[type]:
    """All classes derived from ``base`` so far, each once."""
    found: list[type] = [base]
    for known in found:  # it grows meanwhile
        derived: list[type] = known.__subclasses__()
        found += [one for one in derived if one not in found]
    return found[1:]
