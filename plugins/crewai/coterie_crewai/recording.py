"""Recording CrewAI, on for as long as somebody wants it: the instrumentor, or an event listener made by hand."""

from __future__ import annotations

from threading import RLock

from coterie.roles import add_acting_source, remove_acting_source
from coterie_crewai.events import wrap_events
from coterie_crewai.identity import acting_in_running_code
from coterie_crewai.patches import patches
from coterie_crewai.runs import wrap_runs

_wanted_by: list[object] = []
_lock = RLock()


def start_recording(who: object) -> None:
    """Record every crew of the process. Who asks twice is counted once.

    It may be called inside the program's own import of crewai, so no lock is held while it imports.
    """
    with _lock:
        if not any(one is who for one in _wanted_by):
            _wanted_by.append(who)
        patches.start()
        add_acting_source(acting_in_running_code)
    wrap_runs()
    wrap_events()


def stop_recording(who: object) -> None:
    """Put everything back, unless somebody else wants to go on. Runs under way are recorded to their end."""
    with _lock:
        _wanted_by[:] = [one for one in _wanted_by if one is not who]
        if not _wanted_by:
            patches.restore()
            remove_acting_source(acting_in_running_code)
