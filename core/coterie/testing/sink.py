"""An attempt for tests: its spans and rewards are collected in lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coterie.conventions import OPERATION
from coterie.scope import AttemptScope
from coterie.vocabulary import Mode, Reward, Span


@dataclass(slots=True)
class ListSink:
    """A ``SpanSink`` that keeps everything in order of arrival."""

    spans: list[Span] = field(default_factory=list)
    rewards: list[Reward] = field(default_factory=list)

    def add_span(self, span: Span) -> None:
        """Keep a span."""
        self.spans.append(span)

    def add_reward(self, reward: Reward) -> None:
        """Keep a reward."""
        self.rewards.append(reward)

    def of(self, operation: str) -> list[Span]:
        """The spans of one operation, such as ``conventions.CHAT``."""
        return [span for span in self.spans if span.attributes.get(OPERATION) == operation]


def scope_for_test(sink: ListSink | None = None, **fields: Any) -> AttemptScope:
    """An attempt scope with fixed ids and a ``ListSink``; ``fields`` replaces any field of ``AttemptScope``."""
    values: dict[str, Any] = {
        "rollout_id": "ro-test",
        "attempt_id": "at-test",
        "mode": Mode.TRAIN,
        "sink": sink if sink is not None else ListSink(),
    }
    return AttemptScope(**(values | fields))
