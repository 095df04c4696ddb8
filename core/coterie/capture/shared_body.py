"""An answer's JSON, parsed once for the SDK and for us: with thousands of token ids in it, a second time is felt."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json


class SharedBody:
    """A whole body. Whichever of the two readers comes first has it parsed, and the other gets the same object.

    Nobody changes it while both read: we are done with it when the SDK hands its answer to the user's code, or before the
    SDK reads at all.
    """

    def __init__(self, response: Any) -> None:
        """Share the body of ``response`` (of httpx or its fork), which has been read. Its ``json`` is shadowed on this one
        object.
        """
        self._content: bytes = response.content
        self._parsed: Any = _NOTHING
        self._given_to_sdk = False
        response.json = self._json

    def read(self) -> Any:
        """The JSON value. To be called once.

        Raises:
            ValueError: it is no JSON.
        """
        return self._share()

    def _json(self, **kwargs: Any) -> Any:
        """In place of the response's own method, which gives a new object each time. So does this but for the first."""
        if kwargs or self._given_to_sdk:
            return json.loads(self._content, **kwargs)
        self._given_to_sdk = True
        return self._share()

    def _share(self) -> Any:
        if self._parsed is _NOTHING:
            self._parsed = _value_of(self._content)
            return self._parsed
        # The second reader's: it need not be kept any longer.
        parsed, self._parsed = self._parsed, _NOTHING
        return parsed


_NOTHING = object()


def _value_of(content: bytes) -> Any:
    try:
        # Several times as quick as json, which is felt with thousands of token ids, and as exact with large integers.
        return from_json(content)
    except ValueError:  # json takes more, such as halves of surrogate pairs, and raises what the SDK expects
        return json.loads(content)
