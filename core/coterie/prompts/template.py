r"""The template language of prompts: ``{{name}}`` is a placeholder, every other character stands for itself.

So JSON, code, f-strings, quotes and single braces need no escape, whoever writes them. A name is of letters,
digits and underscores, does not begin with a digit and has no spaces around it: ``{{ name }}``, ``{{1}}`` and
``{{"a": 1}}`` are plain text. A backslash before a placeholder makes
that plain text, too: ``\{{name}}`` reads ``{{name}}``, and ``\\{{name}}`` is a backslash and a placeholder. Everywhere else
a backslash is a backslash. Values are put in as they are and not read again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from coterie.errors import PromptError


def render(text: str, values: Mapping[str, object], *, of: str = "This prompt") -> str:
    """A template with its placeholders filled; the values as ``str`` gives them.

    Args:
        text: the template.
        values: placeholder → value.
        of: what it is, for the message: ``prompt 'coder' version 3``.

    Raises:
        PromptError: a placeholder has no value, or a value no placeholder.
    """
    _check(_names(text), values, of=of, absent="the template has no {}", extra="{} has no value")
    return _PLACEHOLDER.sub(lambda found: _filled(found, values), text)


def placeholders(text: str) -> tuple[str, ...]:
    """The names of a template's placeholders, each once, in the order in which they come."""
    return _names(text)


def check_template(text: str, placeholders: Collection[str], *, of: str = "This prompt") -> None:
    """Refuse a text that does not have exactly these placeholders, each at least once.

    Args:
        text: the template.
        placeholders: the names that the code which renders it fills.
        of: what it is, for the message.

    Raises:
        PromptError: names what is missing and what nobody fills.
    """
    _check(_names(text), placeholders, of=of, absent="the text lacks {}", extra="nobody fills {}")


def stands_in(template: str, text: str) -> bool:
    """True if a text holds the template, filled with whatever values."""
    pieces, at = _pieces(template), 0
    for piece in pieces:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return bool(pieces)


def escape(text: str) -> str:
    """The template that renders to ``text`` and has no placeholder, whatever the text holds."""
    return _PLACEHOLDER.sub(lambda found: found["slashes"] * 2 + "\\" + found["braced"], text)


_PLACEHOLDER = re.compile(r"(?P<slashes>\\*)(?P<braced>\{\{(?P<name>[^\W\d]\w*)\}\})")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found["name"] for found in _PLACEHOLDER.finditer(text) if _is_placeholder(found)))


def _is_placeholder(found: re.Match[str]) -> bool:
    return len(found["slashes"]) % 2 == 0


def _pieces(template: str) -> list[str]:
    """What stands between the placeholders, blank pieces left out."""
    pieces, at = [""], 0
    for found in _PLACEHOLDER.finditer(template):
        pieces[-1] += template[at : found.start()] + _filled(found, {found["name"]: ""})
        if _is_placeholder(found):
            pieces.append("")
        at = found.end()
    pieces[-1] += template[at:]
    return [piece for piece in pieces if piece.strip()]


def _filled(found: re.Match[str], values: Mapping[str, object]) -> str:
    slashes = found["slashes"][: len(found["slashes"]) // 2]
    return slashes + (str(values[found["name"]]) if _is_placeholder(found) else found["braced"])


def _check(found: Collection[str], named: Collection[str], *, of: str, absent: str, extra: str) -> None:
    problems = [absent.format(f"{{{{{name}}}}}") for name in named if name not in found]
    problems += [extra.format(f"{{{{{name}}}}}") for name in found if name not in named]
    if problems:
        has = ", ".join(f"{{{{{name}}}}}" for name in found) or "none"
        raise PromptError(
            f"{of[:1].upper()}{of[1:]}: {'; '.join(problems)}. Placeholders of the text: {has}. "
            "A backslash before one, as in \\{{name}}, makes it plain text."
        )
