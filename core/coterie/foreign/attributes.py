"""Reading attributes that somebody else wrote: whatever is odd is None."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from coterie.vocabulary import JSON


def text_of(value: JSON) -> str | None:
    """A text that is not empty."""
    return value if isinstance(value, str) and value else None


def whole_of(value: JSON) -> int | None:
    """A whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def parsed(value: JSON) -> JSON:
    """What JSON text says; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def mapping_of(value: JSON) -> Mapping[str, JSON]:
    """A mapping, also from JSON text; else an empty one."""
    value = parsed(value)
    return value if isinstance(value, Mapping) else {}


def list_of(value: JSON) -> Sequence[JSON]:
    """A list, also from JSON text; else an empty one."""
    value = parsed(value)
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def as_text(value: JSON) -> str:
    """A value as JSON text; a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def numbered(attributes: Mapping[str, JSON], prefix: str) -> list[dict[str, JSON]]:
    """The items of ``prefix.0.…``, ``prefix.1.…`` in order, each as a mapping of the rest of the name to the value."""
    items: dict[int, dict[str, JSON]] = {}
    start = prefix + "."
    for name, value in attributes.items():
        if not name.startswith(start):
            continue
        number, _, rest = name[len(start) :].partition(".")
        if number.isascii() and number.isdigit() and len(number) < 7:
            items.setdefault(int(number), {})[rest] = value
    return [items[number] for number in sorted(items)]
