"""Which spans a search asks for."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.vocabulary import SpanStatus


@dataclass(frozen=True, slots=True)
class SpanFilter:
    """Conditions on spans. None means any; all that are given must hold."""

    run_id: str | None = None
    """Spans of the rollouts of this run."""
    rollout_id: str | None = None
    attempt_id: str | None = None
    trace_id: str | None = None
    name: str | None = None
    role: str | None = None
    """As in the attribute ``coterie.role``."""
    agent_path: str | None = None
    """As in the attribute ``coterie.agent.path``, in full."""
    operation: str | None = None
    """As in the attribute ``gen_ai.operation.name``, such as ``chat`` or ``execute_tool``."""
    status: SpanStatus | None = None
    started_from_ns: int | None = None
    """Spans that began at this time or later."""
    started_before_ns: int | None = None
    """Spans that began before this time."""
    text: str | None = None
    """Words that must all occur, in any order and in upper or lower case, in what was said: the messages, the arguments
    and results of tools, the span's name, its status message. Between words stands anything but letters and digits.
    """
