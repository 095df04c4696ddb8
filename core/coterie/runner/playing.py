"""Plays one attempt in this process: its scope, its root span, its deadline, and what its end means."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import RLock, Thread
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Status, StatusCode, use_span

from coterie import conventions as c
from coterie.errors import RewardError
from coterie.own_spans import OwnSpan
from coterie.prompts.asking import GivenPrompts
from coterie.prompts.versions import PromptVersion
from coterie.replays import Recorded, Replaying
from coterie.rewards import returned_rewards
from coterie.rollouts import Given, RolloutFunction
from coterie.scope import AttemptScope, SpanSink, attempt_scope
from coterie.spans import to_span, tracer
from coterie.vocabulary import JSON, AttemptState, Endpoint, FailureCause, Mode, Reward, Span, Task


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that is needed to play one attempt, also in another process."""

    rollout_id: str
    attempt_id: str
    mode: Mode
    task: Task
    endpoints: Mapping[str, Endpoint]
    prompts: Sequence[PromptVersion]
    sampling: Mapping[str, JSON]
    agents: Mapping[str, str] = field(default_factory=dict)
    """Agent name to role, where the rollout's run says so."""
    recorded: Recorded | None = None
    """The attempt that this one plays again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    state: AttemptState
    cause: FailureCause | None = None
    error: str | None = None
    retry: bool = True
    """False if another try must end in the same way, or if the lease is no longer ours to give back."""
    abandoned: str | None = None
    """Says what goes on running because nothing can end it."""


class Interruption(StrEnum):
    """Why an attempt is ended from outside."""

    LOST = "lost"
    """Its lease was lost, or its rollout withdrawn."""
    STOPPED = "stopped"
    """The runner stops."""


class Player(Protocol):
    """Plays attempts somewhere."""

    async def play(
        self,
        assignment: Assignment,
        sink: SpanSink,
        deadline_seconds: float | None,
        interrupted: asyncio.Future[Interruption],
    ) -> Outcome:
        """Play one attempt to its end; never raises for what the rollout function does."""
        ...

    async def close(self) -> None:
        """Leave nothing behind."""
        ...


class OpenAttempt:
    """One attempt under way in this process: its scope, and the root span of all that it does."""

    def __init__(self, assignment: Assignment, sink: SpanSink, name: str) -> None:
        self.tap = AttemptTap(sink)
        self.scope = AttemptScope(
            rollout_id=assignment.rollout_id,
            attempt_id=assignment.attempt_id,
            mode=assignment.mode,
            sink=self.tap,
            endpoints=assignment.endpoints,
            prompts=assignment.prompts,
            sampling=assignment.sampling,
            agents=assignment.agents,
            replay=Replaying(assignment.recorded) if assignment.recorded is not None else None,
        )
        with attempt_scope(self.scope):
            # The empty context makes it a root: what the runner's own caller traces is none of the attempt's.
            self.root = tracer().start_span(
                name, context=Context(), attributes={c.OPERATION: c.INVOKE_WORKFLOW, c.WORKFLOW_NAME: name}
            )
        self.tap.root = self.root

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make it the current attempt within the block."""
        with attempt_scope(self.scope), use_span(self.root, record_exception=False, set_status_on_exception=False):
            yield

    def end(self, outcome: Outcome | None) -> None:
        """End its calls and its root span; from now on it takes nothing more."""
        if outcome is not None and outcome.error is not None:
            self.root.set_status(Status(StatusCode.ERROR, outcome.error.splitlines()[0]))
            self.root.set_attribute(c.ERROR_TYPE, (outcome.cause or outcome.state).value)
        diverged = self.scope.replay.end() if self.scope.replay is not None else None
        if diverged is not None:
            self.root.set_attribute(c.REPLAY_DIVERGED, diverged)
        # What the code left behind, such as a stream that nobody read to its end, would be lost.
        with attempt_scope(self.scope):
            self.scope.end_open_calls()
        self.root.end()
        self.tap.close()


class AttemptTap:
    """The sink that the attempt's code sees: it closes at the attempt's end, and shows rewards on the root span."""

    def __init__(self, sink: SpanSink) -> None:
        self.root: OtelSpan | None = None
        self.rewards = 0
        self._sink: SpanSink | None = sink
        self._lock = RLock()

    def add_span(self, span: Span) -> None:
        """Take a finished span."""
        with self._lock:
            if self._sink is not None:
                self._sink.add_span(span)

    def add_reward(self, reward: Reward) -> None:
        """Take a reward."""
        with self._lock:
            if self._sink is None:
                return
            self._sink.add_reward(reward)
            self.rewards += 1
        if self.root is not None:
            self.root.add_event(c.EVALUATION_EVENT, _reward_attributes(reward))

    def close(self) -> None:
        """From now on nothing is taken: what an abandoned thread still does belongs to no attempt."""
        with self._lock:
            self._sink = None


class InProcess:
    """Plays attempts in this process's event loop, sync functions in threads of their own."""

    def __init__(
        self,
        function: RolloutFunction[..., Any],
        *,
        grace_seconds: float,
        begun: Callable[[Span], None] | None = None,
    ) -> None:
        """``begun`` is told the root span when an attempt begins, in case the process does not live to end it."""
        self._function = function
        self._grace_seconds = grace_seconds
        self._begun = begun

    async def play(
        self,
        assignment: Assignment,
        sink: SpanSink,
        deadline_seconds: float | None,
        interrupted: asyncio.Future[Interruption],
    ) -> Outcome:
        """Play one attempt. A function that cannot be ended at the deadline is abandoned."""
        attempt = OpenAttempt(assignment, sink, self._function.name)
        if self._begun is not None and isinstance(attempt.root, ReadableSpan | OwnSpan):
            self._begun(to_span(attempt.root))
        outcome = None
        try:
            with attempt.entered():
                outcome = await self._ended(
                    _given(assignment, attempt.scope), deadline_seconds, interrupted, assignment, attempt.tap
                )
        finally:
            attempt.end(outcome)
        return outcome

    async def close(self) -> None:
        """Nothing is held."""

    async def _ended(
        self,
        given: Given,
        deadline_seconds: float | None,
        interrupted: asyncio.Future[Interruption],
        assignment: Assignment,
        tap: AttemptTap,
    ) -> Outcome:
        function = self._function
        running: asyncio.Future[_Return]
        if function.asynchronous:
            running = asyncio.create_task(_awaited(function, given), name=f"{function.name} {assignment.attempt_id}")
        else:
            running = _in_thread(lambda: function.play(given), f"{function.name} {assignment.attempt_id}")
        try:
            either: set[asyncio.Future[Any]] = {running, interrupted}
            await asyncio.wait(either, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return _judged(running.result(), assignment, tap)
        finally:
            running.cancel()
        if isinstance(running, asyncio.Task):
            await asyncio.wait({running}, timeout=self._grace_seconds)
            if running.done():
                return cut_off(interrupted, deadline_seconds, "was cancelled")
            _abandoned.add(running)
            running.add_done_callback(_abandoned.discard)
            went_on = f"it swallowed its cancellation and still runs after {self._grace_seconds:g} s"
        else:
            went_on = "its thread goes on, since Python cannot end a thread"
        return cut_off(
            interrupted,
            deadline_seconds,
            "was abandoned",
            f"{went_on}. Give its calls time limits, or use isolation='process', which kills.",
        )


def cut_off(
    interrupted: asyncio.Future[Interruption], deadline_seconds: float | None, what: str, abandoned: str | None = None
) -> Outcome:
    """The outcome of an attempt that was ended from outside; ``what`` says how."""
    if not interrupted.done():
        error = f"It ran longer than its deadline of {deadline_seconds:g} s and {what}."
        return Outcome(AttemptState.FAILED, FailureCause.DEADLINE, error, abandoned=abandoned)
    if interrupted.result() is Interruption.STOPPED:
        error = f"The runner was stopped while it ran; it {what}, and its rollout goes back into the queue."
        return Outcome(AttemptState.CANCELLED, None, error, abandoned=abandoned)
    error = f"Its lease was lost or its rollout cancelled while it ran; it {what}."
    return Outcome(AttemptState.CANCELLED, None, error, retry=False, abandoned=abandoned)


@dataclass(frozen=True, slots=True)
class _Return:
    """What a function gave or raised."""

    value: Any = None
    error: BaseException | None = None


_abandoned: set[asyncio.Task[_Return]] = set()
"""Tasks that swallowed their cancellation: the loop itself holds tasks only weakly."""


def _reward_attributes(reward: Reward) -> dict[str, str | float]:
    attributes: dict[str, str | float | None] = {
        c.EVALUATION_NAME: reward.name,
        c.EVALUATION_VALUE: reward.value,
        c.EVALUATION_EXPLANATION: reward.explanation,
        c.REWARD_ROLE: reward.role,
        c.REWARD_AGENT_PATH: reward.agent_path,
        c.REWARD_CALL_ID: reward.call_id,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _given(assignment: Assignment, scope: AttemptScope) -> Given:
    endpoints = assignment.endpoints
    general = next((endpoint for endpoint in endpoints.values() if not endpoint.roles), None)
    return Given(
        task=assignment.task,
        prompts=GivenPrompts(scope),
        endpoint=general or next(iter(endpoints.values()), None),
        endpoints=dict(endpoints),
        mode=assignment.mode if assignment.recorded is None else assignment.recorded.mode,
    )


async def _awaited(function: RolloutFunction[..., Any], given: Given) -> _Return:
    try:
        return _Return(await function.play(given))
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - it becomes the outcome
        return _Return(error=error)


def _in_thread(call: Callable[[], Any], name: str) -> asyncio.Future[_Return]:
    """Call in a thread of its own, in a copy of the present context. A daemon: an abandoned one holds up no exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Return] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: _Return) -> None:
        if not future.done():
            future.set_result(result)

    def run() -> None:
        try:
            result = _Return(context.run(_finished, call))
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it must not leave the attempt without an end
            result = _Return(error=error)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(settle, result)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _finished(call: Callable[[], Any]) -> Any:
    """A plain function may wrap an async one and return its coroutine."""
    value = call()
    return asyncio.run(_result(value)) if inspect.isawaitable(value) else value


async def _result(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _judged(ended: _Return, assignment: Assignment, tap: AttemptTap) -> Outcome:
    """What a function's return or exception means."""
    try:
        if ended.error is not None:
            raise ended.error
        rewards = returned_rewards(
            ended.value, rollout_id=assignment.rollout_id, attempt_id=assignment.attempt_id, gave=tap.rewards
        )
    except RewardError as error:
        return Outcome(AttemptState.FAILED, FailureCause.BAD_REWARD, str(error))
    except BaseException as error:  # noqa: BLE001 - it was the user's, and is over
        return Outcome(AttemptState.FAILED, FailureCause.ERROR, describe(error))
    for reward in rewards:
        tap.add_reward(reward)
    return Outcome(AttemptState.SUCCEEDED)


SHOWN_FRAMES = 6
"""Frames of a traceback that an attempt's error keeps: the innermost ones."""
SHOWN_CHARACTERS = 4000
"""Characters of an attempt's error."""

_OWN_FOLDER = str(Path(__file__).parent.parent)


def describe(error: BaseException) -> str:
    """Type and message of an exception, what caused it, and the last lines of its traceback."""
    lines = [_headline(error)]
    cause, seen = error.__cause__ or error.__context__, {id(error)}
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        lines.append(f"caused by {_headline(cause)}")
        cause = cause.__cause__ or cause.__context__
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN_FOLDER)
    ]
    lines += [line.rstrip() for line in traceback.format_list(frames[-SHOWN_FRAMES:])]
    return "\n".join(lines)[:SHOWN_CHARACTERS]


def _headline(error: BaseException) -> str:
    text = str(error)[:2000]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
