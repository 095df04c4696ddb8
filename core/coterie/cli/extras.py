"""The extras of the distribution: what each needs, and whether it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from coterie.errors import CoterieError

DISTRIBUTION = "coterie"


class MissingExtraError(CoterieError):
    """A part that is not installed is needed."""


@dataclass(frozen=True, slots=True)
class Need:
    """One requirement and how it is met."""

    requirement: Requirement
    installed: str | None
    """The installed version, or None."""

    @property
    def fits(self) -> bool:
        """True when an allowed version is installed."""
        return self.installed is not None and self.requirement.specifier.contains(self.installed, prereleases=True)

    @property
    def problem(self) -> str | None:
        """What is wrong, in words; None when it fits."""
        if self.fits:
            return None
        wanted = f"{self.requirement.name}{self.requirement.specifier}"
        return f"{wanted} is not installed" if self.installed is None else f"{wanted} is needed, not {self.installed}"


def extras() -> Mapping[str, Sequence[Need]]:
    """Extra → its requirements on this machine, those of other extras that it includes among them."""
    names = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return {name: needs_of(DISTRIBUTION, extra=name) for name in sorted(names)}


def needs_of(distribution: str, *, extra: str | None = None, only: Sequence[str] = ()) -> Sequence[Need]:
    """What an installed distribution requires: its base, or one extra alone; with ``only`` those of these names.

    Raises:
        PackageNotFoundError: the distribution is not installed.
    """
    needs = []
    for text in requires(distribution) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"extra": extra or ""}):
            continue
        if extra is not None and (marker is None or marker.evaluate({"extra": ""})):
            continue
        if normal_name(requirement.name) == normal_name(distribution):
            needs += [need for part in sorted(requirement.extras) for need in needs_of(distribution, extra=part)]
        elif not only or normal_name(requirement.name) in only:
            needs.append(Need(requirement, installed_version(requirement.name)))
    return needs


def require_extra(extra: str, *, purpose: str) -> None:
    """Make sure that everything of an extra is installed.

    Raises:
        MissingExtraError: names what is missing and how to install it.
    """
    missing = [need.requirement.name for need in extras()[extra] if need.installed is None]
    if missing:
        raise MissingExtraError(f"{purpose} needs {', '.join(missing)}. Do: {install_command(extra)}")


def extra_of_module(module: str) -> str | None:
    """The smallest extra that brings a module, or None."""
    name = normal_name(module.partition(".")[0])
    having = [
        (len(needs), extra)
        for extra, needs in extras().items()
        if any(normal_name(need.requirement.name) == name for need in needs)
    ]
    return min(having)[1] if having else None


def install_command(extra: str) -> str:
    """What to type to get an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def normal_name(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
