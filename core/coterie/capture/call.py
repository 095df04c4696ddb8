"""One LLM call from the moment that it leaves until its answer is complete: who made it, what it becomes, its span."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from opentelemetry.trace import SpanKind, Status, StatusCode

from coterie import conventions as names
from coterie.announced import AnnouncedCall, announced_call
from coterie.capture.answers import Answer, read_answer
from coterie.capture.api import Api
from coterie.capture.attributes import answer_attributes, input_messages, request_attributes
from coterie.capture.content import ContentRules, content_rules
from coterie.capture.faults import note_fault
from coterie.capture.prompting import with_prompts
from coterie.capture.rewrite import with_endpoint, with_sampling
from coterie.prompts.versions import RolePrompts, UsedPrompts
from coterie.random_ids import random_id
from coterie.replays import GivenAnswer
from coterie.roles import Acting, Identity, current_acting, role_of
from coterie.scope import AttemptScope, CallSummary, current_scope
from coterie.spans import put, set_tokens, start_span
from coterie.states import recorded_state
from coterie.vocabulary import Endpoint, Mode

ERROR_MESSAGE_LIMIT = 2000
"""Characters of an error's message that a span keeps."""


class LLMCall:
    """One LLM call. Made before the request leaves; ends once, by ``answered`` or ``failed`` or with its attempt, whichever
    comes first.
    """

    def __init__(self, api: Api, body: Mapping[str, Any], *, provider: str) -> None:
        """Take up a call with the present identity, attempt and announcement, and open its span.

        Args:
            api: which API it is for.
            body: what the user's code wants to send; it is not changed.
            provider: who serves the model, for the span.
        """
        announced = announced_call()
        self.id = f"ca-{random_id(80):020x}"
        self.api = api
        acting = _acting_in(announced)
        self.identity: Identity = acting.identity
        self.scope: AttemptScope | None = current_scope()
        role = self.identity.role
        self.endpoint: Endpoint | None = self.scope.endpoint_for(role) if self.scope else None
        self._prompts: RolePrompts | None = self.scope.prompts_of(role) if self.scope else None
        self.used = UsedPrompts()
        """The pinned prompts that are in what is sent."""
        self.body: Mapping[str, Any] = self._rewritten(body)
        """What is really sent."""
        self._turn = self.scope.next_turn(role) if self.scope else None
        self.given: GivenAnswer | None = None
        """The answer that the call gets without a model, in a replay."""
        if self.scope is not None and self.scope.replay is not None:
            self.given = self.scope.replay.answer_to(role, self._turn or 0, input_messages(api, self.body))
        if self.given is not None:
            self._policy_version = self.given.policy_version
        else:
            self._policy_version = self.endpoint.version if self.endpoint else None
        self._tries = 1
        self._responded = False
        self._rules: ContentRules = content_rules()
        self._secrets: set[str] = set()
        self._ended = Lock()
        self._span = start_span(
            f"chat {self.body.get('model')}",
            self._request_attributes(provider),
            parent=acting.span,
            kind=SpanKind.CLIENT,
        )
        self._announced = announced

    @property
    def rewritten(self) -> bool:
        """True when what is sent may differ from what the user's code wanted to send."""
        return self.endpoint is not None or self._prompts is not None or bool(self.scope and self.scope.sampling)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell a gateway or server whose call it is."""
        return identity_headers(self.id, self.identity.role, self.scope)

    def keep_secret(self, key: Any) -> None:
        """Keep an API key out of what this call records, should a server's error message repeat it."""
        if isinstance(key, str) and len(key) >= 8:
            self._secrets.add(key)

    def leaves(self) -> None:
        """Note that the request leaves as this call: from now on its attempt waits for its end."""
        if self._announced is not None:
            self._announced.captured = True
        self.on_abandonment(self._abandoned)

    def on_abandonment(self, end: Callable[[], None]) -> None:
        """Set what ends the call if the attempt ends before it."""
        if self.scope is not None:
            self.scope.open_call(self.id, end)

    def responded(self, response: Any) -> None:
        """Note what the raw HTTP response of the last try says beside its body. Does not keep it."""
        version = response.headers.get(names.HEADER_POLICY_VERSION, "")
        if version.isdigit():
            self._policy_version = int(version)
        self._tries = _tries(response.request)
        self._responded = True

    def answered(self, body: Mapping[str, Any] | None) -> None:
        """End the call with the body that came back; None when nobody read it."""
        if not self._first_to_end():
            return
        try:
            answer = read_answer(self.api, body) if body is not None else Answer()
            self._record(answer)
            if answer.error is not None:
                self._set_error("APIError", answer.error)
            elif self.scope is not None:
                self.scope.add_call(self._summary(answer))
        except Exception:  # noqa: BLE001 - a body of unforeseen form must not reach the user as our error
            note_fault("The answer of an LLM call could not be recorded")
        finally:
            self._span.end()

    def failed(self, error: BaseException, partial: Mapping[str, Any] | None = None) -> None:
        """End the call with the error that the SDK raises, and with what had come back before it."""
        if not self._first_to_end():
            return
        try:
            self._set_error(type(error).__name__, str(error))
            if not self._responded and getattr(error, "response", None) is not None:
                self.responded(error.response)  # type: ignore[attr-defined]
            elif not self._responded and getattr(error, "request", None) is not None:
                self._tries = _tries(error.request)  # type: ignore[attr-defined]
            answer = read_answer(self.api, partial) if partial is not None else Answer()
            self._record(answer)
        except Exception:  # noqa: BLE001 - the user gets the SDK's error, not ours
            note_fault("The error of an LLM call could not be recorded")
        finally:
            self._span.end()

    def _abandoned(self) -> None:
        if not self._first_to_end():
            return
        self._set_error("Abandoned", "The attempt ended before the answer came.")
        self._span.end()

    def _first_to_end(self) -> bool:
        if self.scope is not None:
            self.scope.close_call(self.id)
        return self._ended.acquire(blocking=False)

    def _rewritten(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.rewritten:
            return body
        changed = dict(body)
        if self._prompts is not None and self.scope is not None:
            self.used = with_prompts(self.api, changed, self._prompts, handed_out=self.scope.handed_out)
        if self.endpoint is not None:
            with_endpoint(self.api, changed, self.endpoint)
        if self.scope is not None:
            with_sampling(self.api, changed, self.scope.sampling)
        return changed

    def _request_attributes(self, provider: str) -> dict[str, Any]:
        identity = self.identity
        attributes: dict[str, Any] = {
            names.OPERATION: names.CHAT,
            names.AGENT_NAME: identity.agent,
            names.ROLE: identity.role,
            names.AGENT_PATH: identity.path_text,
            names.CALL_ID: self.id,
            names.PROVIDER: provider,
        }
        if self._turn is not None:
            attributes[names.TURN] = self._turn
        state = recorded_state(exact=self._rules.exact)
        if state is not None:
            attributes[names.STATE_KEY] = state
        attributes |= request_attributes(self.api, self.body, self._rules)
        if self.given is not None:
            attributes[names.ANSWERED_BY] = self.given.by
            if self.given.policy is not None:
                attributes[names.POLICY_NAME] = self.given.policy
        elif self.endpoint is not None:
            attributes[names.POLICY_NAME] = self.endpoint.policy
        return attributes | self.used.attributes()

    def _record(self, answer: Answer) -> None:
        attributes = answer_attributes(answer, self._rules)
        if self._policy_version is not None:
            attributes[names.POLICY_VERSION] = self._policy_version
        attributes[names.CALL_TRIES] = self._tries
        put(self._span, attributes)
        if self._rules.exact or (self.scope is not None and self.scope.mode is Mode.TRAIN):
            set_tokens(self._span, answer.prompt_ids, answer.response_ids, answer.logprobs)

    def _summary(self, answer: Answer) -> CallSummary:
        return CallSummary(
            call_id=self.id,
            role=self.identity.role,
            agent_path=self.identity.path_text,
            turn=self._turn or 0,
            text=self._rules.text(answer.text),
        )

    def _set_error(self, kind: str, message: str) -> None:
        self._span.set_attribute(names.ERROR_TYPE, kind)
        for secret in self._secrets:
            message = message.replace(secret, "***")
        message = self._rules.text(message) if self._rules.capture_content else ""
        self._span.set_status(Status(StatusCode.ERROR, message[:ERROR_MESSAGE_LIMIT]))


def identity_headers(call_id: str, role: str, scope: AttemptScope | None) -> dict[str, str]:
    """The headers that say whose call a request is."""
    headers = {names.HEADER_CALL_ID: call_id, names.HEADER_ROLE: role}
    if scope is not None:
        headers |= {names.HEADER_ROLLOUT_ID: scope.rollout_id, names.HEADER_ATTEMPT_ID: scope.attempt_id}
        if scope.prompts_of(role) is not None:
            headers[names.HEADER_PROMPTS] = names.PROMPTS_PLACED
    return headers


def _acting_in(announced: AnnouncedCall | None) -> Acting:
    if announced is not None:
        return Acting(announced.identity, announced.parent)
    return current_acting() or Acting(Identity("agent", role_of("agent"), ("agent",)))


def _tries(request: Any) -> int:
    """How often the SDK sent a request: it counts its retries in a header."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return int(count) + 1 if count.isdigit() else 1
