"""Which plugins are installed, whether each can be switched on here, and if not, why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from packaging.requirements import Requirement

GROUP = "opentelemetry_instrumentor"
"""The entry-point group of instrumentors; ours are those whose names start with ``PREFIX``."""
PREFIX = "coterie_"
CAPTURE = "coterie_capture"
"""The entry point that switches capture on for ``opentelemetry-instrument``; it is no framework's plugin."""
SWITCHED_OFF = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
"""The environment variable that names instrumentors to leave off, as ``opentelemetry-instrument`` reads it."""


class Standing(StrEnum):
    """Whether a plugin can be switched on."""

    READY = "ready"
    """Its framework is installed in a supported version."""
    ABSENT = "absent"
    """Its framework is not installed."""
    UNSUPPORTED = "unsupported"
    """Its framework is installed in a version that it does not know."""
    SWITCHED_OFF = "switched_off"
    """The environment says that it is to stay off."""
    BROKEN = "broken"
    """It cannot be loaded."""


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """An installed plugin."""

    name: str
    """The name of its entry point, such as ``coterie_langchain``."""
    standing: Standing
    detail: str
    """What was found, in a few words."""
    instrumentor: Any | None = None
    """Its instrumentor, where it is ready."""
    error: Exception | None = None
    """Why it is broken."""

    @property
    def framework(self) -> str:
        """What it is for: ``langchain``."""
        return self.name.removeprefix(PREFIX)


def plugin_entry_points() -> Sequence[EntryPoint]:
    """The entry points of all installed plugins, by name."""
    found = {entry.name: entry for entry in entry_points(group=GROUP) if entry.name.startswith(PREFIX)}
    return [found[name] for name in sorted(found) if name != CAPTURE]


def examine(entry_point: EntryPoint) -> FoundPlugin:
    """Load a plugin, without its framework, and see whether it can be switched on. Never raises."""
    if entry_point.name in _switched_off():
        return FoundPlugin(entry_point.name, Standing.SWITCHED_OFF, f"{SWITCHED_OFF} names it")
    try:
        instrumentor = entry_point.load()()
        conflict = get_dependency_conflicts(instrumentor.instrumentation_dependencies())
    except ModuleNotFoundError as missing:
        return FoundPlugin(entry_point.name, Standing.ABSENT, f"{missing.name} is not installed")
    except Exception as error:  # noqa: BLE001 - one broken plugin must not hide the others
        return FoundPlugin(entry_point.name, Standing.BROKEN, f"{type(error).__name__}: {error}", error=error)
    if conflict is None:
        versions = ", ".join(_installed(instrumentor.instrumentation_dependencies()))
        return FoundPlugin(entry_point.name, Standing.READY, versions, instrumentor)
    wanted = str(conflict.required)
    if conflict.found is None:
        return FoundPlugin(entry_point.name, Standing.ABSENT, f"{wanted} is not installed")
    return FoundPlugin(entry_point.name, Standing.UNSUPPORTED, f"{wanted} is needed, {conflict.found} is installed")


def _switched_off() -> frozenset[str]:
    return frozenset(name.strip() for name in os.environ.get(SWITCHED_OFF, "").split(","))


def _installed(requirements: Iterable[str]) -> Iterable[str]:
    for text in requirements:
        name = Requirement(text).name
        yield f"{name} {version(name)}"
