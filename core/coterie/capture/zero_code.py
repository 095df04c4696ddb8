"""Capture for programs that say nothing of Coterie: ``opentelemetry-instrument python app.py``.

That command loads each instrumentor by its entry point. The frameworks' plugins are such; this one switches capture on
beside them, as environment variables say.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from coterie.capture.faults import note_fault
from coterie.capture.switch import instrument_calls, instrumented, uninstrument
from coterie.errors import ConfigError
from coterie.roles import RoleMap

ROLES = "COTERIE_ROLES"
"""Agent names to roles: ``Senior Analyst=analyst,Coder=coder``."""
CAPTURE_CONTENT = "COTERIE_CAPTURE_CONTENT"
"""``false`` leaves all text out of spans."""
RECORD = "COTERIE_RECORD"
"""The store in which the whole process is kept as one attempt, such as ``team.db``."""

_log = logging.getLogger("coterie")


class CaptureInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Switches capture of LLM calls on. A setting that is wrong is said, and the program runs."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: it hooks what is there."""
        return ()

    def _instrument(self, **_: Any) -> None:
        if instrumented():
            return
        instrument_calls(roles=_roles(), capture_content=_capture_content())
        # Taken out, so that only this process is recorded, and not each Python program that it starts.
        store = os.environ.pop(RECORD, "")
        if store:
            _record(store)

    def _uninstrument(self, **_: Any) -> None:
        uninstrument()


def _roles() -> Mapping[str, str] | None:
    roles: dict[str, str] = {}
    for pair in filter(None, map(str.strip, os.environ.get(ROLES, "").split(","))):
        agent, equals, role = (part.strip() for part in pair.rpartition("="))
        try:
            if not equals or not agent:
                raise ConfigError(f"{pair!r} is no pair. Write it as 'Senior Analyst=analyst,Coder=coder'.")
            RoleMap({agent: role})
        except ConfigError as error:
            _log.error("%s: %s It is left out.", ROLES, error)
        else:
            roles[agent] = role
    return roles or None


def _capture_content() -> bool:
    given = os.environ.get(CAPTURE_CONTENT, "true").strip().lower()
    if given in ("true", "1", "yes", "on", ""):
        return True
    if given not in ("false", "0", "no", "off"):
        _log.error("%s is %r; write true or false. Text is left out, to be safe.", CAPTURE_CONTENT, given)
    return False


def _record(store: str) -> None:
    from coterie.recording import record_process

    try:
        record_process(store)
    except ConfigError as error:
        _log.error("%s: %s Nothing is recorded.", RECORD, error)
    except Exception:  # noqa: BLE001 - the user's program runs all the same
        note_fault("The process could not be recorded")
