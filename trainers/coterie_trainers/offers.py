"""Parts that are chosen by name: built-in ones, and those that other packages offer by entry points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from coterie.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Offers:
    """The parts of one kind."""

    setting: str
    """The key of the configuration under which they are chosen; errors begin with it."""
    noun: str
    """What one is called."""
    group: str
    """The entry point group in which packages offer them."""
    built_in: Mapping[str, str]
    """Name → ``module:function`` or ``module:Class``."""

    def get(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """The part of this name. A class gives a new object, made with the options.

        Raises:
            ConfigError: there is none of this name (the message lists what there is), two packages offer it, it cannot
                be imported, or it does not take these options.
        """
        point = self._point(name)
        try:
            part = point.load()
        except Exception as error:
            raise ConfigError(
                f"{self.setting}: {name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if isinstance(part, type):
            part = self._made(name, part, options or {})
        elif options:
            raise ConfigError(f"{self.setting}: {name!r} takes no options; {', '.join(sorted(options))} cannot be set.")
        if not callable(part):
            raise ConfigError(f"{self.setting}: {name!r} ({point.value}) is no function: {part!r}.")
        return part

    def names(self) -> list[str]:
        """The names that ``get`` knows, sorted."""
        return sorted({*self.built_in, *entry_points(group=self.group).names})

    def _point(self, name: str) -> EntryPoint:
        offered = list(entry_points(group=self.group, name=name))
        if name in self.built_in:
            offered.insert(0, EntryPoint(name, self.built_in[name], self.group))
        if not offered:
            raise ConfigError(
                f"{self.setting}: there is no {self.noun} {name!r}. There are: {', '.join(self.names())}."
            )
        if len({point.value for point in offered}) > 1:
            sources = " and ".join(sorted(point.value for point in offered))
            raise ConfigError(f"{self.setting}: two packages offer {name!r}: {sources}. Uninstall one or rename it.")
        return offered[0]

    def _made(self, name: str, kind: type, options: Mapping[str, Any]) -> Any:
        try:
            inspect.signature(kind).bind(**options)
        except TypeError as error:
            takes = ", ".join(inspect.signature(kind).parameters) or "none"
            raise ConfigError(f"{self.setting}: {name!r}: {error}. Its options: {takes}.") from None
        try:
            return kind(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.setting}: {name!r} with {dict(options)}: {error}") from error
