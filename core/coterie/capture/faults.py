"""What capture has to say: once each, in the log, never as an exception in the user's code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

_log = logging.getLogger("coterie")
_noted: set[str] = set()

P = ParamSpec("P")


def note_fault(what: str) -> None:
    """Log the exception being handled, the first time that ``what`` happens in this process."""
    if what not in _noted:
        _noted.add(what)
        _log.exception("%s. The program goes on. This is logged once.", what)


def warn_once(what: str) -> None:
    """Log a warning, the first time that ``what`` is said in this process."""
    if what not in _noted:
        _noted.add(what)
        _log.warning("%s. This is logged once.", what)


def guarded(function: Callable[P, None], *, what: str | None = None) -> Callable[P, None]:
    """A callback whose faults are logged once and go no further, for hooks in other people's code.

    Args:
        function: gives nothing back, so that nothing is missed when it fails.
        what: what could not be done, for the log; by default its name.
    """
    sentence = what or f"{function.__module__}.{function.__qualname__} failed, so something was not recorded"

    @wraps(function)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
            note_fault(sentence)

    return guard
