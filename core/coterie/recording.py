"""``coterie.record``: the code of a block becomes one attempt, for programs that no runner plays."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from coterie.assembly import build_episode
from coterie.capture.content import content_rules
from coterie.capture.switch import instrument, instrumented
from coterie.connecting import connect
from coterie.episodes import Episode
from coterie.errors import ConfigError, CoterieError
from coterie.roles import nobody_acting
from coterie.runner.playing import Assignment, OpenAttempt, Outcome, describe
from coterie.runner.recorder import Block, Chosen, Recorder, Wanted, recorder_for, release
from coterie.scope import SpanSink, set_process_scope
from coterie.store.base import Store
from coterie.vocabulary import JSON, AttemptState, FailureCause, Mode, Reward, Span, Task, new_id

_log = logging.getLogger("coterie")


def record(
    store: str | os.PathLike[str] | Store | None = None,
    *,
    task: JSON | Task = None,
    name: str = "recording",
    prompts: Chosen = True,
    endpoints: Chosen = False,
    metadata: Mapping[str, JSON] | None = None,
) -> Recording:
    """Make the code of a block one attempt at a rollout of mode production.

    ``with coterie.record("team.db", task="What is 6 × 7?") as recording: …``, or the same with ``async with``. Agents,
    LLM calls, tool calls and ``coterie.reward(...)`` inside are kept. They are written while the block runs, so that a
    crash loses little; its attempt then ends with its lease. An exception ends the attempt as failed and goes on
    unchanged. After the block ``recording.episode`` is what the team did.

    Recordings may run side by side, in tasks and in threads, and inside each other: the innermost one counts. If
    ``coterie.instrument()`` was not called, it is now, and stays on.

    Args:
        store: Where to keep it: a path, an address as ``coterie.connect`` takes it, or an open store; None keeps it in
            memory only.
        task: What the team works on: its input, or a ``Task`` with an id of its own. The same input is the same task.
        name: What the program is called, as the workflow's name.
        prompts: Which published prompts the team's agents get in place of their own: the active version of all, of
            those of these resource names, or of none (False). Of two for the same part of the same role neither is
            taken up, unless one is named; that is logged.
        endpoints: The same for published model endpoints. None by default: the servers of a training run end with it.
        metadata: Free labels of the rollout.

    A store that cannot be opened or written breaks nothing: that is logged, and ``recording.problem`` says it.

    Raises:
        ConfigError: the address is of no known kind; and when the block begins, a named resource has no active version.
    """
    if store is not None and not isinstance(store, Store):
        connect(store)  # says what is wrong with an address
        store = os.fspath(store)
        # The same file wherever the program goes.
        store = store if "://" in store else os.path.abspath(store)
    for what, chosen in (("prompts", prompts), ("endpoints", endpoints)):
        if isinstance(chosen, str):
            raise ConfigError(f"coterie.record: {what}={chosen!r} is a text; give a list of names, True or False.")
    return Recording(store, Wanted(_as_task(task), prompts, endpoints, metadata or {}), name)


class Recording:
    """One attempt that the code of a block makes. ``coterie.record`` makes it; a block may be entered once."""

    def __init__(self, store: Store | str | None, wanted: Wanted, name: str, *, keeps: bool = True) -> None:
        """``keeps=False`` holds nothing for ``episode`` in memory, for recordings without an end in sight."""
        self.task = wanted.task
        self.problem: str | None = None
        """Why the store does not have this attempt, or not its end; None if all is well."""
        self._store = store
        self._wanted = wanted
        self._name = name
        self._recorder: Recorder | None = None
        self._block = Block()
        self._attempt: OpenAttempt | None = None
        self._kept = _Kept(keeps or store is None)
        self._entered = ExitStack()
        self._episode: Episode | None = None

    @property
    def rollout_id(self) -> str:
        """The rollout's id in the store, from the block's beginning on."""
        return self._begun.scope.rollout_id

    @property
    def attempt_id(self) -> str:
        """The attempt's id in the store, from the block's beginning on."""
        return self._begun.scope.attempt_id

    @property
    def episode(self) -> Episode:
        """What the team did, also if it failed.

        Raises:
            CoterieError: the block has not ended.
        """
        if self._episode is None:
            self._episode = self._assembled()
        return self._episode

    def __enter__(self) -> Self:
        self._prepare()
        if self._recorder is not None:
            try:
                assignment, sink = self._recorder.submit(self._recorder.begin(self._wanted, self._block)).result()
            except BaseException as error:  # noqa: BLE001 - what is not the store's is raised again
                self._not_begun(error)
            else:
                return self._enter(assignment, sink)
        return self._enter_in_memory()

    async def __aenter__(self) -> Self:
        self._prepare()
        if self._recorder is not None:
            begun = self._recorder.submit(self._recorder.begin(self._wanted, self._block))
            try:
                assignment, sink = await asyncio.shield(asyncio.wrap_future(begun))
            except BaseException as error:  # noqa: BLE001 - what is not the store's is raised again
                self._not_begun(error)
            else:
                return self._enter(assignment, sink)
        return self._enter_in_memory()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = self._leave(error)
        if self._recorder is not None:
            try:
                self._note_end(self._recorder.submit(self._recorder.end(self._block, outcome)).result())
            finally:
                release(self._store)  # type: ignore[arg-type]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = self._leave(error)
        if self._recorder is not None:
            ended = self._recorder.submit(self._recorder.end(self._block, outcome))
            try:
                # The end is written even if nobody waits for it any more.
                self._note_end(await asyncio.shield(asyncio.wrap_future(ended)))
            finally:
                release(self._store)  # type: ignore[arg-type]

    @property
    def _begun(self) -> OpenAttempt:
        if self._attempt is None:
            raise CoterieError("coterie.record: the block has not begun. Use it as `with coterie.record(…) as …:`.")
        return self._attempt

    def _prepare(self) -> None:
        if self._attempt is not None or self._recorder is not None:
            raise CoterieError("coterie.record: this recording was used before. Call coterie.record(…) for each block.")
        if not instrumented():
            instrument()
        if self._store is not None:
            self._recorder = recorder_for(self._store)

    def _not_begun(self, error: BaseException) -> None:
        """Go on in memory if it is the store's fault; raise what is the caller's."""
        self._block.end(Outcome(AttemptState.CANCELLED, None, "The recording was given up before it began.", False))
        self._recorder = None
        release(self._store)  # type: ignore[arg-type]
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise error
        self.problem = f"It is kept in memory only: {error}"
        _log.warning("coterie.record: %s", self.problem)

    def _enter_in_memory(self) -> Self:
        assignment = Assignment(
            rollout_id=new_id("ro"),
            attempt_id=new_id("at"),
            mode=Mode.PRODUCTION,
            task=self.task,
            endpoints={},
            prompts=(),
            sampling={},
        )
        return self._enter(assignment, None)

    def _enter(self, assignment: Assignment, sink: SpanSink | None) -> Self:
        self._kept.onward = sink
        self._attempt = OpenAttempt(assignment, self._kept, self._name)
        self._entered.enter_context(self._attempt.entered())
        self._entered.enter_context(nobody_acting())
        return self

    def _leave(self, error: BaseException | None) -> Outcome:
        outcome = _outcome_of(error)
        try:
            self._entered.close()
        except ValueError:
            # A generator may be closed in another context than the one in which it began, which is gone.
            _log.debug("A recording ended in another context than it began in.")
        self._begun.end(outcome)
        self._kept.ended = True
        return outcome

    def _note_end(self, written: bool) -> None:
        if not written:
            self.problem = "The store did not take its end; the log says why."

    def _assembled(self) -> Episode:
        if not self._kept.ended:
            raise CoterieError("coterie.record: the block has not ended, so its episode is not complete.")
        return build_episode(self.task.id, self.attempt_id, self.rollout_id, self._kept.spans, self._kept.rewards)


class _Kept:
    """A ``SpanSink`` that keeps everything for the episode, and hands it on to be written."""

    def __init__(self, keeps: bool) -> None:
        self.keeps = keeps
        self.spans: list[Span] = []
        self.rewards: list[Reward] = []
        self.onward: SpanSink | None = None
        self.ended = False

    def add_span(self, span: Span) -> None:
        if self.keeps:
            self.spans.append(span)
        if self.onward is not None:
            self.onward.add_span(span)

    def add_reward(self, reward: Reward) -> None:
        if self.keeps:
            self.rewards.append(reward)
        if self.onward is not None:
            self.onward.add_reward(reward)


def record_process(store: str) -> None:
    """Make all that this process does, in every thread, one attempt in a store, to its end.

    Raises:
        ConfigError: the address is of no known kind.
    """
    connect(store)
    # Before the program starts there is no sys.argv yet.
    program = [os.path.basename(sys.orig_argv[0]), *sys.orig_argv[1:]]
    recording = Recording(store, Wanted(_as_task(" ".join(program)), True, False, {}), _program_name(), keeps=False)
    recording.__enter__()
    set_process_scope(recording._begun.scope)

    @atexit.register
    def end() -> None:
        set_process_scope(None)
        # Set by the interpreter when an exception ended the program.
        recording.__exit__(None, getattr(sys, "last_value", None), None)


def _program_name() -> str:
    files = [argument for argument in sys.orig_argv[1:] if not argument.startswith("-")]
    return os.path.basename(files[0]) if files else "python"


def _as_task(task: JSON | Task) -> Task:
    if isinstance(task, Task):
        return task
    try:
        text = json.dumps(task, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"coterie.record: the task must be a text or another JSON value: {error}.") from error
    return Task(
        f"recorded-{hashlib.sha256(text.encode()).hexdigest()[:16]}", task, dataset="recorded", split="production"
    )


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome(AttemptState.SUCCEEDED)
    rules = content_rules()
    text = rules.text(describe(error)) if rules.capture_content else type(error).__name__
    return Outcome(AttemptState.FAILED, FailureCause.ERROR, text, retry=False)
