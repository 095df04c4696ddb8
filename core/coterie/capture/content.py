"""What of a call's content may be recorded, and the texts after masking."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from coterie.capture.faults import note_fault
from coterie.vocabulary import JSON

MASK_FAILED = "[mask failed]"
"""Stands where the user's mask raised: better no text than an unmasked one."""


@dataclass(frozen=True, slots=True)
class ContentRules:
    """What the user allows to be recorded."""

    capture_content: bool = True
    mask: Callable[[str], str] | None = None

    def stricter(self, other: ContentRules) -> ContentRules:
        """Both rules at once; the later mask replaces the earlier."""
        return ContentRules(self.capture_content and other.capture_content, other.mask or self.mask)

    @property
    def exact(self) -> bool:
        """True when texts are recorded as they are, so that token ids reveal nothing more."""
        return self.capture_content and self.mask is None

    def text(self, text: str) -> str:
        """A text after masking."""
        if self.mask is None:
            return text
        try:
            return self.mask(text)
        except Exception:  # noqa: BLE001 - the mask is the user's code
            note_fault("The mask given to coterie.instrument() raised; the text was left out")
            return MASK_FAILED

    def json_text(self, messages: JSON) -> str:
        """Messages as JSON text, every text in them masked."""
        masked = self._masked(messages)
        try:
            return orjson.dumps(masked, default=_plain, option=_LIKE_JSON).decode()
        except TypeError:  # what orjson refuses and json writes: keys that are no text, half of a surrogate pair
            return json.dumps(masked, ensure_ascii=False, default=_plain)

    def arguments_text(self, arguments: JSON) -> str:
        """A tool call's arguments as JSON text, masked like messages, and spaced for people, who are shown it as it is."""
        return json.dumps(self._masked(arguments), ensure_ascii=False, default=_plain)

    def _masked(self, value: Any) -> Any:
        if self.mask is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: item if key in _STRUCTURE else self._masked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._masked(_plain(value))


_LIKE_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
"""What ``json`` does not write by itself goes to ``_plain`` here too."""

_STRUCTURE = frozenset({"role", "type", "id", "call_id", "tool_call_id", "name", "status", "finish_reason"})
"""Keys whose values hold a message together and are no text of anyone."""

_rules = ContentRules()


def content_rules() -> ContentRules:
    """The rules in force."""
    return _rules


def set_content_rules(rules: ContentRules) -> None:
    """Put rules in force for the whole process."""
    global _rules
    _rules = rules


def _plain(value: Any) -> Any:
    """SDK objects among the user's messages (pydantic models) as JSON values; of a named tuple, what is in it."""
    if isinstance(value, tuple):
        return list(value)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else str(value)
