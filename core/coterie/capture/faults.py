"""What capture has to say: once each, in the log, never as an exception in the user's code."""

from __future__ import annotations

import logging

_log = logging.getLogger("coterie")
_noted: set[str] = set()


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
