"""Where the spans and rewards of a running attempt wait until they are written."""

from __future__ import annotations

from collections.abc import Sequence
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

    def unwritten(self) -> Sequence[Span]:
        """The spans that were not written yet; they stay here until ``written`` says that they were."""
        with self._lock:
            return tuple(self._spans)

    def written(self, count: int) -> None:
        """Forget the first ``count`` spans: they are on disk."""
        with self._lock:
            del self._spans[:count]

    def close(self) -> tuple[Sequence[Span], Sequence[Reward]]:
        """What is left to write. Does not forget it: a flush may be under way, and writing twice changes nothing."""
        with self._lock:
            return tuple(self._spans), tuple(self._rewards)
