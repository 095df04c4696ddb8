"""The record of one call: its span, with the same attributes as a call that was captured in its program."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from coterie import conventions as names
from coterie.capture.answers import Answer, assembler_for, read_answer
from coterie.capture.api import Api
from coterie.capture.attributes import answer_attributes, request_attributes
from coterie.capture.call import ERROR_MESSAGE_LIMIT
from coterie.capture.content import ContentRules
from coterie.prompts.versions import UsedPrompts
from coterie.vocabulary import JSON, Mode, Span, SpanEvent, SpanStatus, now_ns
from coterie_server.gateway.attribution import Attribution, Resource
from coterie_server.gateway.routing import Origin, Target
from coterie_server.gateway.servers import Server
from coterie_server.gateway.token_ids import understood

_log = logging.getLogger("coterie.gateway")

TRY_EVENT = "coterie.call.try"
"""Event: a try that failed, and was followed by another."""
FALLBACK_EVENT = "coterie.call.fallback"
"""Event: no server of the policy answered, so another model was asked."""
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(slots=True, eq=False)
class Call:
    """One call on its way through the gateway."""

    what: Api | Resource
    by: Attribution
    rules: ContentRules
    origin: Origin | None = None
    target: Target | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    """What is sent."""
    prompts: UsedPrompts = field(default_factory=UsedPrompts)
    """The prompts that are in it."""
    start_ns: int = field(default_factory=now_ns)
    traceparent: bytes | None = None
    server: Server | None = None
    """The one that answers, or was tried last."""
    sent_bytes: int = 0
    recorded: bool = False
    """True once its span is on its way."""
    fell_back: bool = False
    version: int | None = None
    tries: int = 0
    events: list[SpanEvent] = field(default_factory=list)

    @property
    def role(self) -> str:
        """The role that calls."""
        return self.by.role or "agent"

    def tried(self, why: str, *, status: int | None = None) -> None:
        """Note a try that failed and is followed by another."""
        about: dict[str, JSON] = {"number": self.tries, "server": self.server.name if self.server else "", "error": why}
        if status is not None:
            about["status"] = status
        self.events.append(SpanEvent(TRY_EVENT, now_ns(), about))

    def span(self, answer: Answer, error: tuple[str, str] | None = None) -> Span:
        """The finished record. ``error`` is its class and message."""
        try:
            attributes = self._attributes(answer)
        except Exception:  # noqa: BLE001 - a body of unforeseen form was answered all the same: that is recorded
            _log.exception("Parts of call %s could not be read and are left out of its span.", self.by.call_id)
            attributes = self._identity()
        if error is None and answer.error is not None:
            error = ("APIError", answer.error)
        message = ""
        if error is not None:
            attributes[names.ERROR_TYPE] = error[0]
            message = self.rules.text(error[1])[:ERROR_MESSAGE_LIMIT] if self.rules.capture_content else ""
        trace_id, parent_id = self._trace()
        return Span(
            trace_id=trace_id,
            span_id=os.urandom(8).hex(),
            parent_id=parent_id,
            name=f"{attributes[names.OPERATION]} {self.body.get('model')}",
            start_ns=self.start_ns,
            end_ns=now_ns(),
            rollout_id=self.by.rollout_id,
            attempt_id=self.by.attempt_id,
            status=SpanStatus.ERROR if error is not None else SpanStatus.UNSET,
            status_message=message,
            attributes=attributes,
            events=self.events,
        )

    def read(self, body: Mapping[str, Any] | None) -> Answer:
        """A whole answer, or what came of one, as far as it can be read."""
        if body is None:
            return Answer()
        try:
            if isinstance(self.what, Api):
                return read_answer(self.what, understood(dict(body)))
            usage = body.get("usage") or {}
            return Answer(model=body.get("model"), input_tokens=usage.get("prompt_tokens"))
        except Exception:  # noqa: BLE001 - as above
            _log.exception("The answer to call %s could not be read.", self.by.call_id)
            return Answer()

    def _attributes(self, answer: Answer) -> dict[str, Any]:
        if isinstance(self.what, Resource):
            return {
                **self._identity(),
                names.REQUEST_MODEL: self.body.get("model"),
                **answer_attributes(answer, ContentRules(capture_content=False)),
            }
        attributes = {
            **self._identity(),
            **request_attributes(self.what, self.body, self.rules),
            **answer_attributes(answer, self.rules),
        }
        train = self.origin is not None and self.origin.mode is Mode.TRAIN
        if self.rules.exact or train:
            # Token ids reveal the text, so they follow its rules, except where training cannot do without.
            tokens = {
                names.PROMPT_TOKENS: answer.prompt_ids,
                names.RESPONSE_TOKENS: answer.response_ids,
                names.LOGPROBS: answer.logprobs,
            }
            attributes |= {name: list(value) for name, value in tokens.items() if value is not None}
        return attributes

    def _identity(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            names.OPERATION: names.CHAT if isinstance(self.what, Api) else names.EMBEDDINGS,
            names.AGENT_NAME: self.role,
            names.ROLE: self.role,
            names.AGENT_PATH: self.role,
            names.CALL_ID: self.by.call_id,
            names.PROVIDER: "anthropic" if self.what is Api.MESSAGES else "openai",
            names.RECORDED_BY: names.GATEWAY,
            names.CALL_TRIES: max(1, self.tries),
            names.SERVER_ADDRESS: self.server.name if self.server is not None else None,
            names.ROLLOUT_ID: self.by.rollout_id,
            names.ATTEMPT_ID: self.by.attempt_id,
        }
        if self.target is not None and not self.fell_back:
            attributes[names.POLICY_NAME] = self.target.policy
            attributes[names.POLICY_VERSION] = self.version
        attributes |= self.prompts.attributes()
        return {name: value for name, value in attributes.items() if value is not None}

    def _trace(self) -> tuple[str, str | None]:
        """The client's trace, if it told it; else one for all calls of the attempt."""
        told = _TRACEPARENT.fullmatch(self.traceparent) if self.traceparent else None
        if told is not None:
            return told[1].decode(), told[2].decode()
        if self.by.attempt_id is not None:
            return hashlib.blake2b(self.by.attempt_id.encode(), digest_size=16).hexdigest(), None
        return os.urandom(16).hex(), None


def streamed_answer(what: Api, events: Sequence[bytes]) -> Mapping[str, Any]:
    """The body that the events of a stream, as far as they came, add up to."""
    assembler = assembler_for(what)
    for event in events:
        data = event_data(event)
        if data is not None:
            assembler.add(understood(data))
    return assembler.body()


def event_data(event: bytes) -> dict[str, Any] | None:
    """The JSON object in an event of a stream; None if it holds none."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    data = b"\n".join(lines)
    if not data.startswith(b"{"):
        return None
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
