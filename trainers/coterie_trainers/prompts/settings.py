"""An optimiser's settings, checked before any work: every mistake names the optimiser, the key and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from coterie.errors import ConfigError
from coterie.prompts import placeholders

S = TypeVar("S", bound=BaseModel)


def checked(kind: type[S], optimiser: str, given: Mapping[str, Any]) -> S:
    """The settings of an optimiser.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(mistakes(optimiser, list(kind.model_fields), error)) from None


def mistakes(optimiser: str, keys: Sequence[str], error: ValidationError) -> str:
    """What is wrong with the settings of an optimiser that has these keys, in a sentence."""
    found = dict.fromkeys(_clause(keys, each) for each in error.errors(include_url=False))
    return f"optimiser {optimiser!r}: {'; '.join(found)}."


def template(value: str, *, needs: tuple[str, ...], offers: tuple[str, ...]) -> str:
    """A template that a setting holds: the text itself, or the path of a file. A path has no ``{{name}}`` in it.

    Args:
        value: What the setting holds.
        needs: Placeholders that it must have.
        offers: Others that it may have.

    Raises:
        ValueError: there is no such file, or a placeholder is missing or unknown.
    """
    text = value
    if not placeholders(value):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(
                f"it has no placeholder, so it should be the path of a file, which cannot be read ({why})"
            ) from None
    found = placeholders(text)
    problems = [f"it lacks {{{{{name}}}}}" for name in needs if name not in found]
    problems += [f"nobody fills {{{{{name}}}}}" for name in found if name not in (*needs, *offers)]
    if problems:
        raise ValueError(f"{', '.join(problems)}; it may have: {', '.join((*needs, *offers))}")
    return text


def _clause(keys: Sequence[str], details: Mapping[str, Any]) -> str:
    key = ".".join(map(str, details["loc"]))
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        return f"unknown key {key!r}{hint} (it has: {', '.join(keys) or 'none'})"
    if details["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"the key {key!r} is missing"
    allowed = str(details["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return f"{key} = {details['input']!r} is not allowed: {allowed}" if key else allowed
