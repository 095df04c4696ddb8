"""One call, from the request that comes in to the record that is on its way to the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from coterie import conventions as names
from coterie.capture.answers import Answer
from coterie.capture.api import Api
from coterie.store.base import Store
from coterie.vocabulary import Mode, Span
from coterie_server.gateway import messages, replies
from coterie_server.gateway.attribution import Attribution, Place, Resource, attribute
from coterie_server.gateway.budgets import Account, Accounts
from coterie_server.gateway.errors import Dialect, Refusal, bad_request, error_class, unavailable
from coterie_server.gateway.messages import Caller
from coterie_server.gateway.metrics import GatewayMetrics
from coterie_server.gateway.pauses import Door, Doors
from coterie_server.gateway.recording import Call
from coterie_server.gateway.replies import Headers, Receive, Send
from coterie_server.gateway.requests import Request, read_body, turned
from coterie_server.gateway.routing import Origin, Routing, Target
from coterie_server.gateway.servers import Servers
from coterie_server.gateway.settings import Budget, GatewaySettings
from coterie_server.gateway.spool import SpanWriter
from coterie_server.gateway.streams import Stream, error_in
from coterie_server.gateway.token_ids import Hidden
from coterie_server.gateway.upstream import GATEWAY_HEADER, NOT_THERE, Reply, UpstreamClient

_log = logging.getLogger("coterie.gateway")

COMMIT_SECONDS = 30.0
"""How long the end of an answer waits for its record to be on disk, should the store be away."""
_CALL_ID = names.HEADER_CALL_ID.encode()
_TRACEPARENT = b"traceparent"
_GATEWAY = GATEWAY_HEADER.encode()


@dataclass(slots=True, eq=False)
class Flight:
    """A call under way, as those see it who may end it."""

    task: asyncio.Task[Any]
    began: float
    why: str | None = None
    """Why it was ended: the class of its error."""

    def end(self, why: str) -> None:
        """End it."""
        if self.why is None:
            self.why = why
            self.task.cancel()


class Calls:
    """Takes calls, and knows which are under way."""

    def __init__(
        self,
        store: Store,
        settings: GatewaySettings,
        routing: Routing,
        servers: Servers,
        upstream: UpstreamClient,
        writer: SpanWriter,
        doors: Doors,
        metrics: GatewayMetrics,
        gateway_id: str,
    ) -> None:
        self._store = store
        self._settings = settings
        self._routing = routing
        self._servers = servers
        self._upstream = upstream
        self._writer = writer
        self._doors = doors
        self._metrics = metrics
        self._gateway_id = gateway_id.encode()
        self._rules = settings.rules()
        self._accounts = Accounts(settings.budget)
        self._flights: set[Flight] = set()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._flights)

    async def drain(self, seconds: float) -> None:
        """Take no more calls, wait for those under way, and end what is left after ``seconds``."""
        self._stopping = True
        deadline = time.monotonic() + seconds
        while self._flights and time.monotonic() < deadline:
            await asyncio.wait([flight.task for flight in self._flights], timeout=deadline - time.monotonic())
        for flight in list(self._flights):
            flight.end(STOPPED)
        if self._flights:
            await asyncio.wait([flight.task for flight in self._flights], timeout=5)

    async def take(
        self, place: Place, headers: Mapping[bytes, bytes], caller: Caller, receive: Receive, send: Send
    ) -> None:
        """Handle one request.

        Raises:
            Refusal: nothing was answered yet.
        """
        self._can_take(headers)
        raw = await replies.read_all(receive, self._settings.largest_body_bytes)
        if raw is None:
            raise bad_request(
                f"The body is larger than {self._settings.largest_body_bytes} bytes "
                "(gateway.largest_body_bytes in the server's configuration).",
                code="body_too_large",
                status=413,
            )
        body = read_body(place.what, raw)
        by = attribute(place, headers)
        task = asyncio.current_task()
        assert task is not None
        flight = Flight(task, time.monotonic())
        self._flights.add(flight)
        self._metrics.in_flight.inc()
        watch = asyncio.create_task(_watch(receive, flight))
        try:
            if place.what is Api.MESSAGES and await self._is_translated(by, body):
                await messages.translated(body, by, caller, send)
            else:
                await self._routed(by, place.what, body, raw, headers, flight, send)
        except asyncio.CancelledError:
            if flight.why is None:
                raise
        finally:
            watch.cancel()
            self._flights.discard(flight)
            self._metrics.in_flight.dec()

    def _can_take(self, headers: Mapping[bytes, bytes]) -> None:
        if self._stopping:
            raise unavailable("The gateway is about to stop.", code="gateway_stopping", retry_after=5)
        if len(self._writer) >= self._settings.waiting_spans:
            raise unavailable(
                f"{len(self._writer)} calls wait to be recorded: the store does not keep up, or is away.",
                code="store_behind",
                retry_after=5,
            )
        if headers.get(_GATEWAY) == self._gateway_id:
            raise bad_request(
                "This gateway was asked by itself: an endpoint's base_url names the gateway, and its policy has no "
                "'backends' in the gateway's settings. Say there where its model servers are.",
                code="gateway_loop",
                status=508,
            )

    async def _routed(
        self,
        by: Attribution,
        what: Api | Resource,
        body: dict[str, Any],
        raw: bytes,
        headers: Mapping[bytes, bytes],
        flight: Flight,
        send: Send,
    ) -> None:
        call = Call(what, by, self._rules, traceparent=headers.get(_TRACEPARENT), body=body)
        account: Account | None = None
        if by.rollout_id is not None and by.attempt_id is not None:
            call.origin = await self._routing.origin(by.rollout_id, by.attempt_id)
            account = await self._account(call.origin)
        call.target = await self._target(call, body)
        request = self._request(call, body, raw)
        if account is not None and call.origin is not None:
            account.admit(call.origin.rollout_id)
        door = self._doors.of(call.target.policy) if call.target.policy is not None else None
        entered = False
        try:
            if door is not None:
                await door.enter(self._settings.pause_seconds)
                entered = True
            await self._answered(call, request, headers, account, door, flight, send)
        except asyncio.CancelledError:
            self._broke_off(call, None, account, flight)
            if flight.why is None:
                raise
        finally:
            if door is not None and entered:
                door.leave()

    async def _answered(
        self,
        call: Call,
        request: Request,
        headers: Mapping[bytes, bytes],
        account: Account | None,
        door: Door | None,
        flight: Flight,
        send: Send,
    ) -> None:
        assert call.target is not None
        if call.target.endpoint is not None:
            known = door.version if door is not None else None
            call.version = known if known is not None else call.target.endpoint.version
        try:
            reply = await self._upstream.send(call, request, str(call.what), headers)
        except Refusal as refusal:
            self._ended(call, call.span(Answer(), ("APIConnectionError", refusal.message)), Answer(), account, flight)
            raise
        try:
            _no_redirect(call, reply)
            self._note_version(call, reply, account)
            if reply.body is None:
                await self._pass_stream(call, request, reply, account, flight, send)
            else:
                await self._pass_whole(call, request, reply, reply.body, account, flight, send)
        except Refusal as refusal:
            self._ended(
                call, call.span(Answer(), (error_class(refusal.status), refusal.message)), Answer(), account, flight
            )
            raise
        finally:
            reply.close()

    # What comes back

    async def _pass_whole(
        self,
        call: Call,
        request: Request,
        reply: Reply,
        body: bytes,
        account: Account | None,
        flight: Flight,
        send: Send,
    ) -> None:
        status, headers = reply.response.status, self._headers(call, reply)
        if status >= 400:
            body = _without_key(body, reply)
            answer = Answer()
            span = call.span(answer, (error_class(status), error_in(body)))
        else:
            parsed = _parsed(body)
            answer = call.read(parsed)
            # What is no JSON raises in the client's SDK; the record says the same of it.
            error = None if parsed is not None else ("JSONDecodeError", "The answer is no JSON object.")
            span = call.span(answer, error)
            if parsed is not None and request.hidden:
                body = request.hidden.strip(parsed)
        await self._recorded(call, span)
        self._count(call, span, answer, account, flight)
        await replies.whole(send, status, headers, body)

    async def _pass_stream(
        self, call: Call, request: Request, reply: Reply, account: Account | None, flight: Flight, send: Send
    ) -> None:
        assert isinstance(call.what, Api)
        hidden = request.hidden if not call.fell_back else Hidden()
        stream = Stream(call.what, hidden, hold_end=self._waits_for_disk(call))
        await replies.begin(send, reply.response.status, self._headers(call, reply))
        try:
            async for piece in stream.pieces(reply.response.content.iter_any()):
                await replies.go_on(send, piece)
        except asyncio.CancelledError:
            self._broke_off(call, stream, account, flight)
            if flight.why is None:
                raise
            if flight.why != CLIENT_GONE:
                await _cut(call, send, unavailable("The gateway was stopped.", code="gateway_stopped"))
            return
        except NOT_THERE as error:
            reply.server.failed("it broke off an answer", at_once=False)
            self._ended_early(call, stream, (type(error).__name__, str(error)), account, flight)
            cut = unavailable("The model server broke off its answer.", code="model_server_broke_off", status=502)
            await _cut(call, send, cut)
            return
        last = stream.held()
        answer = call.read(stream.answer())
        span = call.span(answer)
        await self._recorded(call, span)
        self._count(call, span, answer, account, flight)
        await replies.end(send, last)

    def _broke_off(self, call: Call, stream: Stream | None, account: Account | None, flight: Flight) -> None:
        """Record a call that was ended from here: its client is gone, or the gateway stops."""
        if call.recorded:
            return
        why = flight.why or STOPPED
        if why == CLIENT_GONE and stream is not None:
            answer = call.read(stream.answer())
            whole = answer.messages and len(answer.finish_reasons) == len(answer.messages)
            if whole or answer.error is not None:
                # Some clients close the connection without reading what follows the last word, or an error.
                self._ended(call, call.span(answer), answer, account, flight)
                return
        message = "The client closed the connection." if why == CLIENT_GONE else "The gateway was stopped."
        self._ended_early(call, stream, (why, message), account, flight)

    def _ended_early(
        self, call: Call, stream: Stream | None, error: tuple[str, str], account: Account | None, flight: Flight
    ) -> None:
        answer = call.read(stream.answer()) if stream is not None else Answer()
        self._ended(call, call.span(answer, error), answer, account, flight)

    # The record

    async def _recorded(self, call: Call, span: Span) -> None:
        """Bring a record on its way; where its rollout may end with this answer, wait until it is there."""
        call.recorded = True
        if not self._waits_for_disk(call):
            self._writer.add(span)
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._writer.commit(span)
        except TimeoutError:
            _log.error("Call %s was answered, and is not in the store after %g s.", call.by.call_id, COMMIT_SECONDS)

    def _waits_for_disk(self, call: Call) -> bool:
        if not self._writer.outlives_us:
            return True
        return call.origin is not None and call.origin.mode is not Mode.PRODUCTION

    def _ended(self, call: Call, span: Span, answer: Answer, account: Account | None, flight: Flight) -> None:
        call.recorded = True
        self._writer.add(span)
        self._count(call, span, answer, account, flight)

    def _count(self, call: Call, span: Span, answer: Answer, account: Account | None, flight: Flight) -> None:
        read, written = _used(answer, call)
        policy = call.target.policy if call.target is not None and not call.fell_back else None
        outcome = str(span.attributes.get(names.ERROR_TYPE) or "ok")
        self._metrics.ended(policy, outcome, time.monotonic() - flight.began, read, written)
        if account is not None:
            account.used(read, written, self._settings.prices.get(str(call.body.get("model"))))

    # What it needs beforehand

    async def _account(self, origin: Origin) -> Account:
        account = self._accounts.find(origin.rollout_id)
        if account is not None:
            return account
        account = self._accounts.open(origin.rollout_id, origin.metadata)
        if account.budget != UNLIMITED:
            await self._count_former(origin, account)
        return account

    async def _count_former(self, origin: Origin, account: Account) -> None:
        """Count what the rollout used before this gateway began."""
        cursor: str | None = None
        while True:
            page = await self._store.list_spans(rollout_id=origin.rollout_id, after=cursor)
            for span in page.items:
                told = span.attributes
                if told.get(names.RECORDED_BY) == names.GATEWAY:
                    account.calls += 1
                    price = self._settings.prices.get(str(told.get(names.REQUEST_MODEL)))
                    account.used(told.get(names.INPUT_TOKENS) or 0, told.get(names.OUTPUT_TOKENS) or 0, price)
            cursor = page.cursor
            if cursor is None:
                return

    async def _is_translated(self, by: Attribution, body: Mapping[str, Any]) -> bool:
        """True for a Messages call whose model server speaks Chat Completions only."""
        origin = None
        if by.rollout_id is not None and by.attempt_id is not None:
            origin = await self._routing.origin(by.rollout_id, by.attempt_id)
        target = await self._routing.target(origin, by.role, body.get("model"))
        return target.endpoint is not None and target.how.messages == "translated"

    async def _target(self, call: Call, body: Mapping[str, Any]) -> Target:
        if call.what is Resource.EMBEDDINGS and self._settings.embeddings is not None:
            return Target(None, self._servers.of((self._settings.embeddings,)))
        target = await self._routing.target(call.origin, call.by.role, body.get("model"))
        if call.what is not Resource.EMBEDDINGS:
            return target
        # The servers of the role's policy may have a model for embeddings, too: the caller names it.
        return Target(
            None, self._servers.of([one.upstream.model_copy(update={"model": None}) for one in target.servers])
        )

    def _request(self, call: Call, body: dict[str, Any], raw: bytes) -> Request:
        assert call.target is not None
        if not isinstance(call.what, Api):
            return Request(body, raw, Hidden())
        request = turned(call.what, body, raw, call.target, call.origin, place_prompts=not call.by.prompts_placed)
        call.prompts = request.prompts
        return request

    def _note_version(self, call: Call, reply: Reply, account: Account | None) -> None:
        told = reply.response.headers.get(names.HEADER_POLICY_VERSION, "")
        if told.isdigit():
            call.version = int(told)
        if call.target is None or not call.target.how.one_version_per_rollout or call.fell_back:
            return
        if account is None or call.version is None or reply.response.status >= 400:
            return
        if account.version is None:
            account.version = call.version
        elif account.version != call.version:
            raise Refusal(
                409,
                "conflict_error",
                f"Rollout {call.by.rollout_id} began with version {account.version} of policy {call.target.policy!r}; "
                f"its servers have version {call.version} now.",
                code="policy_version_changed",
                headers={"x-should-retry": "false"},
            )

    def _headers(self, call: Call, reply: Reply) -> Headers:
        return [*replies.passed_on(reply.response.raw_headers), (_CALL_ID, call.by.call_id.encode())]


CLIENT_GONE, STOPPED = "ClientDisconnected", "GatewayStopped"
UNLIMITED = Budget()
CHARACTERS_A_TOKEN = 4
"""A rule of thumb, for budgets, where a server counts nothing: most stream without a count unless they are asked for it."""


async def _watch(receive: Receive, flight: Flight) -> None:
    """End a call when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    flight.end(CLIENT_GONE)


def _no_redirect(call: Call, reply: Reply) -> None:
    """Redirects are for whoever set the address: a client that followed one would bring its token to another host."""
    if 300 <= reply.response.status < 400:
        raise unavailable(
            f"The model server {reply.server.name} redirects {call.what} to another address. Give the right base_url.",
            code="model_server_redirects",
            status=502,
        )


async def _cut(call: Call, send: Send, refusal: Refusal) -> None:
    """End a stream so that the client sees that it was cut: with an event that says so, and without its proper end."""
    dialect = Dialect.ANTHROPIC if call.what is Api.MESSAGES else Dialect.OPENAI
    with contextlib.suppress(Exception):
        await replies.go_on(send, refusal.event(dialect))


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _without_key(body: bytes, reply: Reply) -> bytes:
    """An error's body, without the server's key should it repeat that."""
    key = reply.server.key
    return body.replace(key.encode(), b"***") if key and len(key) >= 8 else body


def _used(answer: Answer, call: Call) -> tuple[int, int]:
    """Tokens of prompt and answer: as the server counts them, else by their ids, else from the length of their texts."""
    read, written = answer.input_tokens, answer.output_tokens
    if read is None:
        read = len(answer.prompt_ids) if answer.prompt_ids else call.sent_bytes // CHARACTERS_A_TOKEN
    if written is None:
        written = len(answer.response_ids) if answer.response_ids else len(answer.text) // CHARACTERS_A_TOKEN
    return int(read), int(written)
