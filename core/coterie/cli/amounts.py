"""Times and sizes as people write them on a command line: ``30d``, ``10GB``, ``2026-05-01T12:00``."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from coterie.errors import ConfigError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def seconds_of(text: str, option: str) -> float:
    """Seconds of ``45s``, ``90m``, ``12h``, ``30d`` or ``2w``.

    Raises:
        ConfigError: it is none of these; names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if found is None:
        raise ConfigError(f"{option} {text!r}: write a number and s, m, h, d or w, for example 30d.")
    return float(found[1]) * _SECONDS[found[2]]


def bytes_of(text: str, option: str) -> int:
    """Bytes of ``500MB``, ``10GB`` or ``2GiB``; a number alone is bytes.

    Raises:
        ConfigError: it is none of these; names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)?", text.strip(), re.IGNORECASE)
    unit = "B" if found is None or found[2] is None else found[2].upper()
    if found is None or unit not in _BYTES:
        raise ConfigError(f"{option} {text!r}: write a number and B, kB, MB, GB, TB or KiB, MiB, …, for example 10GB.")
    return int(float(found[1]) * _BYTES[unit])


def time_of(text: str, option: str, *, now_ns: int) -> int:
    """Nanoseconds since the epoch of a date, a date and time (UTC unless it says otherwise), or of so long ago (``7d``).

    Raises:
        ConfigError: it is none of these; names the option.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return now_ns - int(seconds_of(text, option) * 1e9)
        except ConfigError:
            raise ConfigError(
                f"{option} {text!r}: write a date such as 2026-05-01, a date and time such as 2026-05-01T12:00, or how "
                "long ago, such as 7d."
            ) from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def size_text(count: int) -> str:
    """Bytes as people read them."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
