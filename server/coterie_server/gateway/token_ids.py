"""Token ids and log-probs in answers: asking a server for them, reading its form of them, hiding them from clients that
did not ask.

vLLM (``return_token_ids``) gives ``prompt_token_ids`` at the top and ``token_ids`` a choice or chunk. SGLang gives the same
for Completions; for Chat Completions it is asked with ``return_input_ids_in_sglext`` and ``return_output_ids_in_sglext``
and gives ``sglext: {"input_ids": […], "output_ids": [[…]]}``, streamed in one last chunk without choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from coterie.capture.api import Api
from coterie_server.gateway.routing import Target

_SGLANG_FLAGS = ("return_input_ids_in_sglext", "return_output_ids_in_sglext")
_LOGPROBS_OF_RESPONSES = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class Hidden:
    """What of an answer is for us alone."""

    api: Api = Api.CHAT
    ids: bool = False
    logprobs: bool = False
    sglext: bool = False
    """SGLang's extension, which holds the ids."""

    @classmethod
    def of(cls, api: Api, body: Mapping[str, Any], target: Target) -> Hidden:
        """What the client did not ask for in ``body``, which is still as it sent it, and the endpoint will be asked for."""
        if target.endpoint is None or not target.endpoint.token_ids or api is Api.MESSAGES:
            return cls(api)
        if api is Api.RESPONSES:
            asked = _LOGPROBS_OF_RESPONSES in (body.get("include") or ())
        else:
            asked = body.get("logprobs") not in (None, False)
        sglang = target.how.engine == "sglang" and api is Api.CHAT
        return cls(
            api,
            ids=not body.get("return_token_ids"),
            logprobs=not asked,
            sglext=sglang and not any(body.get(flag) for flag in _SGLANG_FLAGS),
        )

    def ask(self, api: Api, body: dict[str, Any], target: Target) -> None:
        """Turn the wish for token ids, as it is in ``body``, to the way in which the server's engine understands it."""
        if target.how.engine == "sglang" and api is Api.CHAT and body.pop("return_token_ids", None):
            body |= dict.fromkeys(_SGLANG_FLAGS, True)

    def not_asked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``body`` without the wish for what is hidden: for a model that is none of the policy's."""
        if not self:
            return dict(body)
        asked = {name: value for name, value in body.items() if name not in ("return_token_ids", *_SGLANG_FLAGS)}
        if self.logprobs and self.api is Api.RESPONSES:
            asked["include"] = [one for one in body.get("include") or () if one != _LOGPROBS_OF_RESPONSES]
        elif self.logprobs:
            asked.pop("logprobs", None)
        return asked

    def __bool__(self) -> bool:
        return self.ids or self.logprobs or self.sglext

    def strip(self, answer: dict[str, Any]) -> bytes:
        """A whole answer, or one event of a stream, as the client is to get it. Does not change ``answer``; its text is
        written anew, so what JSON leaves open (spaces, escapes) may differ.
        """
        shown = {name: value for name, value in answer.items() if not self._hides(name)}
        if self.api is Api.RESPONSES:
            shown = self._without_logprobs(shown) if self.logprobs else shown
        elif isinstance(shown.get("choices"), list):
            shown["choices"] = [self._choice(one) for one in shown["choices"]]
        return orjson.dumps(shown)

    def nothing_left(self, event: Mapping[str, Any]) -> bool:
        """True for an event of a stream that is there for the hidden ids alone."""
        return self.sglext and "sglext" in event and not event.get("choices") and not event.get("usage")

    def _hides(self, name: str) -> bool:
        return (self.ids and name in ("prompt_token_ids", "token_ids")) or (self.sglext and name == "sglext")

    def _choice(self, choice: Any) -> Any:
        if not isinstance(choice, dict):
            return choice
        shown = {name: value for name, value in choice.items() if not self._hides(name)}
        if self.logprobs and shown.get("logprobs") is not None:
            shown["logprobs"] = None
        return shown

    def _without_logprobs(self, value: Any) -> Any:
        """Of the Responses API: parts of texts, and events of their pieces, have a list of their own each."""
        if isinstance(value, list):
            return [self._without_logprobs(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {name: [] if name == "logprobs" and one else self._without_logprobs(one) for name, one in value.items()}


def understood(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer, or an event of a stream, with token ids where vLLM has them."""
    extension = answer.get("sglext")
    if not isinstance(extension, dict):
        return answer
    known = dict(answer)
    if extension.get("input_ids") is not None:
        known["prompt_token_ids"] = extension["input_ids"]
    outputs = extension.get("output_ids")
    if isinstance(outputs, list):
        choices = {one.get("index", at): one for at, one in enumerate(answer.get("choices") or ())}
        known["choices"] = [{**choices.get(at, {"index": at}), "token_ids": ids} for at, ids in enumerate(outputs)]
    return known
