"""Replays: a rollout that plays an earlier attempt again, up to a point, to see what would have come of it otherwise.

The program runs as ever. What its model calls get is decided here, call by call, by the recording of the attempt:

- The first ``frozen`` calls get the answers that they got then. The program must ask what it asked then; where it does
  not, the replay has **diverged** and says so: it is no use as evidence.
- Calls of the masked role, if there is one, get a fixed text.
- The call after the frozen ones goes to the model: another answer to the same question.
- Of the calls behind it, one that asks exactly what was asked then gets the answer of then, and any other goes to the
  model. An answer depends on nothing but its question, so the answer of then is as good a sample as a new one; it costs
  nothing, and what the change did not touch does not blur the comparison.

Calls are matched by role, the messages that are sent, and where several are the same, their number. With parallel agents
of one role the messages decide, so it does not matter who comes first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from threading import RLock
from typing import Any

import orjson

from coterie.episodes import Episode, Turn
from coterie.errors import ConfigError
from coterie.vocabulary import JSON, Mode, Rollout

METADATA = "coterie.replay"
"""The key of ``Rollout.metadata`` under which its replay stands."""
NEUTRAL_TEXT = "(no answer)"
"""What a masked role says unless somebody chooses another text."""
SHOWN_CHARACTERS = 120
"""Of each side, where a replay says how it diverged."""


class AnsweredBy(StrEnum):
    """Who answered a call, if no model did. The value of ``coterie.answered.by``."""

    RECORDING = "recording"
    """It got the answer that the replayed attempt got to the same question."""
    MASK = "mask"
    """Its role was masked: it got a fixed text."""


@dataclass(frozen=True, slots=True)
class Replay:
    """How a rollout plays an earlier attempt again. Stands in ``Rollout.metadata``."""

    rollout_id: str
    """The rollout that is replayed."""
    attempt_id: str
    """Its attempt that was recorded."""
    frozen: int
    """So many of its first calls, by their start, get the answers of then."""
    masked_role: str | None = None
    """All calls of this role get ``mask_text``."""
    mask_text: str = NEUTRAL_TEXT

    def as_metadata(self) -> dict[str, JSON]:
        """For ``Rollout.metadata``."""
        return {METADATA: asdict(self)}


def replay_of(rollout: Rollout) -> Replay | None:
    """How a rollout replays another one; None if it does not.

    Raises:
        ConfigError: what its metadata say of it makes no sense.
    """
    given = rollout.metadata.get(METADATA)
    if given is None:
        return None
    wanted = {"rollout_id": str, "attempt_id": str, "frozen": int, "masked_role": str | None, "mask_text": str}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"Rollout {rollout.id}: its metadata {METADATA!r} must be a mapping with {', '.join(wanted)}."
        )
    values = {"masked_role": None, "mask_text": NEUTRAL_TEXT, **given}
    problems = [f"unknown key {name!r}" for name in values if name not in wanted]
    problems += [
        f"{name!r} is missing" if name not in values else f"{name!r} is {values[name]!r}"
        for name, kind in wanted.items()
        if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool)
    ]
    if not problems and values["frozen"] < 0:
        problems = [f"'frozen' is {values['frozen']}, which is below 0"]
    if problems:
        raise ConfigError(f"Rollout {rollout.id}: its metadata {METADATA!r} are wrong: {'; '.join(problems)}.")
    return Replay(**values)


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer that a call gets without a model."""

    by: AnsweredBy
    messages: Sequence[Mapping[str, JSON]]
    """One assistant message a choice, as Chat Completions has them, tool calls included."""
    finish_reason: str = "stop"
    model: str | None = None
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    policy: str | None = None
    policy_version: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of the attempt that is replayed."""

    role: str
    index: int
    """The how-many-eth call of this role, from 0."""
    messages: Sequence[Mapping[str, JSON]]
    """What was asked."""
    answer: GivenAnswer | None
    """None where there was none: the call failed, or its answer was not recorded."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is needed to play an attempt again, also in another process."""

    replay: Replay
    calls: Sequence[RecordedCall]
    """By start."""
    mode: Mode
    """The mode of the rollout that is replayed: its program may look at it."""


def recorded(episode: Episode, replay: Replay, mode: Mode) -> Recorded:
    """Make a recording out of an episode.

    Raises:
        ConfigError: the replay asks for what the episode has not, or for answers that were not recorded.
    """
    turns = episode.turns
    where = f"Attempt {episode.attempt_id} cannot be replayed"
    if replay.frozen > len(turns):
        raise ConfigError(f"{where} up to call {replay.frozen}: it made {len(turns)}.")
    if replay.masked_role is not None and replay.masked_role not in episode.roles:
        there = ", ".join(episode.roles) or "none"
        raise ConfigError(
            f"{where} without {replay.masked_role!r}, which made no call in it. The roles that did: {there}."
        )
    for number, turn in enumerate(turns[: replay.frozen]):
        why = why_not_repeatable(turn)
        if why is not None:
            raise ConfigError(f"{where}: call {number} ({turn.role} {turn.index}) {why}.")
    calls = [RecordedCall(turn.role, turn.index, turn.messages, _answer_of(turn)) for turn in turns]
    return Recorded(replay, calls, mode)


def why_not_repeatable(turn: Turn) -> str | None:
    """Why a call's answer cannot be given again; None if it can."""
    if turn.error is not None:
        return f"failed then ({turn.error.splitlines()[0][:SHOWN_CHARACTERS]})"
    if not turn.output or not turn.messages:
        return "was recorded without its texts (capture_content=False?)"
    if any("content" not in message and "tool_calls" not in message for message in turn.output):
        return "was recorded by another instrumentation, whose answers cannot be given again"
    return None


class Replaying:
    """One replay under way: says what each call gets, and whether the program keeps to the recording. Safe in threads."""

    def __init__(self, recorded: Recorded) -> None:
        self._replay = recorded.replay
        self._calls = recorded.calls
        self._left: dict[tuple[str, str], list[int]] = {}
        """Role and question → the recorded calls that were not made again yet."""
        for number, call in enumerate(recorded.calls):
            self._left.setdefault((call.role, question(call.messages)), []).append(number)
        self._made: set[int] = set()
        self._masked = 0
        self._instead: dict[int, str] = {}
        """Frozen call → what its role asked while it was due."""
        self._more: str | None = None
        """The first question that was not asked then."""
        self._diverged: str | None = None
        self._lock = RLock()

    def answer_to(self, role: str, index: int, messages: JSON) -> GivenAnswer | None:
        """The answer that a call gets; None if it goes to the model.

        Args:
            role: who asks.
            index: the how-many-eth call of this role, from 0.
            messages: what would be sent.
        """
        with self._lock:
            try:
                return self._answer_to(role, index, messages)
            except (TypeError, ValueError) as error:
                self.depart(f"what the {role} asks in call {index} cannot be compared: {error}")
                return None

    def depart(self, why: str) -> None:
        """Note that the program does not do what it did then. The first reason counts."""
        with self._lock:
            if self._diverged is None:
                self._diverged = f"The replay of attempt {self._replay.attempt_id} diverged: {why}."

    def end(self) -> str | None:
        """The program has ended: how it departed from the recording, or None if it kept to it."""
        with self._lock:
            replay = self._replay
            # The call behind the frozen ones is made again as well, and answered anew.
            wanted = range(min(replay.frozen + 1, len(self._calls)))
            missing = [number for number in wanted if number not in self._made]
            if missing:
                why = self._instead.get(missing[0])
                self.depart(why or f"{_named(self._calls[missing[0]], missing[0])} was not made again")
            if replay.frozen == len(self._calls) and self._more is not None:
                self.depart(self._more)
            if replay.masked_role is not None and not self._masked:
                self.depart(f"{replay.masked_role} made no call that could be masked")
            return self._diverged

    def _answer_to(self, role: str, index: int, messages: JSON) -> GivenAnswer | None:
        replay = self._replay
        number = self._take(role, index, messages)
        if role == replay.masked_role:
            self._masked += 1
            said = {"role": "assistant", "content": replay.mask_text}
            return GivenAnswer(AnsweredBy.MASK, [said])
        if self._diverged is not None:
            return None
        if number is None:
            self._note_other(role, index, messages)
            return None
        return None if number == replay.frozen else self._calls[number].answer

    def _note_other(self, role: str, index: int, messages: JSON) -> None:
        """Keep a question that was not asked then. It proves nothing yet: with parallel agents of one role it may be one
        that follows from the new answer. If at the end a call is missing, it says why.
        """
        due = (number for number in range(self._replay.frozen) if number not in self._made)
        number = next((one for one in due if self._calls[one].role == role), None)
        if number is not None:
            call = self._calls[number]
            self._instead.setdefault(
                number, f"{_named(call, number)} asks something else: {_difference(call, messages)}"
            )
        self._more = self._more or f"{role} made a call {index} that it did not make then"

    def _take(self, role: str, index: int, messages: JSON) -> int | None:
        """The recorded call that asks the same, by preference the one of the same number; it is made again with this."""
        left = self._left.get((role, question(messages)))
        if not left:
            return None
        number = next((one for one in left if self._calls[one].index == index), left[0])
        left.remove(number)
        self._made.add(number)
        return number


def question(messages: JSON) -> str:
    """What is asked, as a text that is the same for the same question.

    Left out is what says nothing: fields that are null, and the ids that the Responses API gives to items of its own.
    """
    return orjson.dumps(_plain_part(messages), option=orjson.OPT_SORT_KEYS).decode()


_ITEMS = frozenset({"message", "function_call", "reasoning"})
"""Types of items that the Responses API made, whose ids and states are bookkeeping."""


def _plain_part(value: Any) -> JSON:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        value = dump(mode="json")
    if isinstance(value, Mapping):
        bookkeeping = ("id", "status") if value.get("type") in _ITEMS else ()
        return {
            str(name): _plain_part(part)
            for name, part in value.items()
            if part is not None and name not in bookkeeping and part != []
        }
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain_part(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _answer_of(turn: Turn) -> GivenAnswer | None:
    if why_not_repeatable(turn) is not None:
        return None
    return GivenAnswer(
        AnsweredBy.RECORDING,
        turn.output,
        finish_reason=turn.finish_reason or "stop",
        model=turn.model,
        prompt_ids=turn.prompt_ids,
        response_ids=turn.response_ids,
        logprobs=turn.logprobs,
        policy=turn.policy,
        policy_version=turn.policy_version,
    )


def _named(call: RecordedCall, number: int) -> str:
    return f"call {number} ({call.role} {call.index})"


def _difference(call: RecordedCall, messages: JSON) -> str:
    """Where two lists of messages part."""
    then = [question(one) for one in call.messages]
    now = [question(one) for one in messages] if isinstance(messages, Sequence) else [question(messages)]
    for at, (one, other) in enumerate(zip(then, now, strict=False)):
        if one != other:
            start = max(
                0, next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0) - 20
            )
            shown = [json.dumps(text[start : start + SHOWN_CHARACTERS], ensure_ascii=False) for text in (one, other)]
            return f"message {at} had {shown[0]} and has {shown[1]}"
    return f"it had {len(then)} messages and has {len(now)}"
