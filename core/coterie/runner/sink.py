"""Where the spans and rewards of a running attempt wait until they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock

from coterie.runner.trainability import CallCount
from coterie.vocabulary import Reward, Span


class AttemptSink:
    """A ``SpanSink`` that holds what one attempt recorded. May be used from any thread."""

    def __init__(self) -> None:
        self.calls = CallCount()
        self._spans: list[Span] = []
        self._rewards: list[Reward] = []
        self._lock = RLock()

    def add_span(self, span: Span) -> None:
        """Take a finished span."""
        with self._lock:
            self._spans.append(span)
            self.calls.add(span)

    def add_reward(self, reward: Reward) -> None:
        """Take a reward."""
        with self._lock:
            self._rewards.append(reward)

    def waiting(self) -> Waiting:
        """What was not written yet; it stays here until ``written()`` of it says that it was."""
        with self._lock:
            return Waiting(self, tuple(self._spans), tuple(self._rewards))

    def forget(self, spans: int, rewards: int) -> None:
        """Forget the first so many spans and rewards: they are on disk."""
        with self._lock:
            del self._spans[:spans]
            del self._rewards[:rewards]

    def close(self) -> tuple[Sequence[Span], Sequence[Reward]]:
        """What is left to write. Does not forget it: a flush may be under way, and writing twice changes nothing."""
        with self._lock:
            return tuple(self._spans), tuple(self._rewards)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waited in a sink at one moment."""

    sink: AttemptSink
    spans: Sequence[Span]
    rewards: Sequence[Reward]

    def written(self) -> None:
        """Say that it is on disk."""
        self.sink.forget(len(self.spans), len(self.rewards))
