"""Rows of the tables to the words of the vocabulary and back, losing nothing.

What comes back equals what went in, up to JSON: tuples inside a JSON value come back as lists. JSON has no NaN and no
infinity; such a float inside a JSON value is kept as the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``, as in
protobuf's JSON mapping, so that every reader in every language can read every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from pydantic_core import from_json

from coterie import conventions
from coterie.errors import RewardError, StoreError
from coterie.vocabulary import (
    JSON,
    Attempt,
    AttemptState,
    Decision,
    FailureCause,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    ResourceStatus,
    RetryPolicy,
    Reward,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Span,
    SpanEvent,
    SpanStatus,
    Task,
)

Row = Any
"""A result row with an attribute a column."""

DELAYED = "delayed"
"""State in the table of a rollout that is queued but not available yet. It is of its own, so that who looks for work
does not have to pass over those that wait for their time."""


def task_row(task: Task) -> dict[str, Any]:
    """Columns of a task."""
    where = f"task {task.id!r}"
    return _checked(
        {
            "id": task.id,
            "input": to_json(task.input, where, "input"),
            "reference": to_json(task.reference, where, "reference"),
            "dataset": task.dataset,
            "split": task.split,
            "labels": to_json(task.metadata, where, "metadata"),
        },
        where,
    )


def task_of(row: Row) -> Task:
    """The task of a row."""
    return Task(
        id=row.id,
        input=of_json(row.input),
        reference=of_json(row.reference),
        dataset=row.dataset,
        split=row.split,
        metadata=of_json(row.labels),
    )


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Columns of a rollout that is to be queued: its state is ``queued`` whatever the record says.

    Raises:
        StoreError: ``max_attempts``, ``deadline_seconds`` or ``retry`` is out of range.
    """
    return {**_rollout_columns(rollout), "state": queued_state(rollout), "reason": None, "finished_ns": None}


def kept_rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Columns of a rollout as it is, with its state.

    Raises:
        StoreError: ``max_attempts``, ``deadline_seconds`` or ``retry`` is out of range.
    """
    state = RolloutState(rollout.state)
    return {
        **_rollout_columns(rollout),
        "state": queued_state(rollout) if state is RolloutState.QUEUED else state.value,
        "reason": storable(rollout.reason),
        "finished_ns": rollout.finished_ns,
    }


def queued_state(rollout: Rollout) -> str:
    """What the table says of a rollout that is queued: whoever looks for work finds those whose time has come."""
    return RolloutState.QUEUED.value if rollout.available_ns is None else DELAYED


def rollout_state(state: str) -> RolloutState:
    """The state that the table's word stands for."""
    return RolloutState.QUEUED if state == DELAYED else RolloutState(state)


def _rollout_columns(rollout: Rollout) -> dict[str, Any]:
    where = f"rollout {rollout.id!r}"
    if rollout.max_attempts < 1:
        raise StoreError(f"{where}: max_attempts is {rollout.max_attempts}; it must be 1 or more. Nothing was queued.")
    deadline = rollout.deadline_seconds
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise StoreError(
            f"{where}: deadline_seconds is {deadline}; give a positive number, or None for no deadline. "
            "Nothing was queued."
        )
    return _checked(
        {
            "id": rollout.id,
            "task_id": rollout.task_id,
            "mode": Mode(rollout.mode).value,
            "run_id": rollout.run_id,
            "group_id": rollout.group_id,
            "step": rollout.step,
            "resources": to_json(rollout.resources, where, "resources"),
            "sampling": to_json(rollout.sampling, where, "sampling"),
            "max_attempts": rollout.max_attempts,
            "deadline_seconds": deadline,
            "retry": retry_text(rollout.retry, where),
            "available_ns": rollout.available_ns,
            "created_ns": rollout.created_ns,
            "labels": to_json(rollout.metadata, where, "metadata"),
        },
        where,
    )


def rollout_of(row: Row) -> Rollout:
    """The rollout of a row."""
    return Rollout(
        task_id=row.task_id,
        mode=Mode(row.mode),
        id=row.id,
        run_id=row.run_id,
        group_id=row.group_id,
        step=row.step,
        resources=of_json(row.resources),
        sampling=of_json(row.sampling),
        max_attempts=row.max_attempts,
        deadline_seconds=row.deadline_seconds,
        retry=_retry_of(row.retry),
        available_ns=row.available_ns,
        state=rollout_state(row.state),
        reason=row.reason,
        created_ns=row.created_ns,
        finished_ns=row.finished_ns,
        metadata=of_json(row.labels),
    )


def retry_text(retry: RetryPolicy, where: str) -> str | None:
    """The column of a retry policy: None for the one that a rollout has when it is given none.

    Raises:
        StoreError: a cause is unknown, a limit is below 1, or a time or the backoff is out of range.
    """
    if retry == _NO_RETRY_POLICY:
        return None
    by_cause = {}
    for cause, limit in retry.by_cause.items():
        if cause not in list(FailureCause) or isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise StoreError(
                f"{where}: retry.by_cause has {cause!r}: {limit!r}; give a cause ({', '.join(FailureCause)}) and how "
                "many failed attempts make it dead, 1 or more. Nothing was queued."
            )
        by_cause[FailureCause(cause).value] = limit
    figures = {
        "delay_seconds": retry.delay_seconds,
        "backoff": retry.backoff,
        "max_delay_seconds": retry.max_delay_seconds,
    }
    for name, value in figures.items():
        least = 1 if name == "backoff" else 0
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= least):
            raise StoreError(f"{where}: retry.{name} is {value}; give a number of {least} or more. Nothing was queued.")
    return to_json({"by_cause": by_cause, **figures}, where, "retry")


def _retry_of(text: str | None) -> RetryPolicy:
    if text is None:
        return _NO_RETRY_POLICY
    kept = of_json(text)
    return RetryPolicy(**{**kept, "by_cause": {FailureCause(cause): n for cause, n in kept["by_cause"].items()}})


_NO_RETRY_POLICY = RetryPolicy()


def attempt_row(attempt: Attempt) -> dict[str, Any]:
    """Columns of an attempt whose lease is new."""
    return _checked(
        {
            "id": attempt.id,
            "rollout_id": attempt.rollout_id,
            "number": attempt.number,
            "worker": storable(attempt.worker),
            "state": attempt.state.value,
            "started_ns": attempt.started_ns,
            "lease_expires_ns": attempt.lease_expires_ns,
            "renewed_ns": attempt.started_ns,
            "ended_ns": attempt.ended_ns,
            "cause": None if attempt.cause is None else attempt.cause.value,
            "error": storable(attempt.error),
            "warnings": to_json(attempt.warnings, f"attempt {attempt.id!r}", "warnings"),
        },
        f"attempt {attempt.id!r}",
    )


def attempt_of(row: Row) -> Attempt:
    """The attempt of a row."""
    return Attempt(
        id=row.id,
        rollout_id=row.rollout_id,
        number=row.number,
        worker=row.worker,
        state=AttemptState(row.state),
        started_ns=row.started_ns,
        lease_expires_ns=row.lease_expires_ns,
        ended_ns=row.ended_ns,
        cause=None if row.cause is None else FailureCause(row.cause),
        error=row.error,
        warnings=tuple(of_json(row.warnings)),
    )


def span_row(span: Span) -> dict[str, Any]:
    """Columns of a span."""
    where = f"span {span.span_id!r}"
    return _checked(
        {
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "name": storable(span.name),
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "parent_id": span.parent_id,
            "rollout_id": span.rollout_id,
            "attempt_id": span.attempt_id,
            "status": span.status.value,
            "status_message": storable(span.status_message),
            "attributes": to_json(span.attributes, where, "attributes"),
            "events": _events_json(span) if span.events else "[]",
            "role": _text_attribute(span, conventions.ROLE),
            "agent_path": _text_attribute(span, conventions.AGENT_PATH),
            "operation": _text_attribute(span, conventions.OPERATION),
        },
        where,
    )


def _text_attribute(span: Span, name: str) -> str | None:
    value = span.attributes.get(name)
    return storable(value) if isinstance(value, str) else None


def span_of(row: Row) -> Span:
    """The span of a row."""
    return Span(
        trace_id=row.trace_id,
        span_id=row.span_id,
        name=row.name,
        start_ns=row.start_ns,
        end_ns=row.end_ns,
        parent_id=row.parent_id,
        rollout_id=row.rollout_id,
        attempt_id=row.attempt_id,
        status=SpanStatus(row.status),
        status_message=row.status_message,
        attributes=of_json(row.attributes),
        events=() if row.events == "[]" else tuple(SpanEvent(*event) for event in of_json(row.events)),
    )


def reward_row(reward: Reward) -> dict[str, Any]:
    """Columns of a reward.

    Raises:
        RewardError: its value is no finite number.
    """
    return _checked(
        {
            "id": reward.id,
            "rollout_id": reward.rollout_id,
            "attempt_id": reward.attempt_id,
            "value": _finite_number(reward),
            "name": reward.name,
            "source": reward.source,
            "role": reward.role,
            "agent_path": reward.agent_path,
            "call_id": reward.call_id,
            "explanation": storable(reward.explanation),
            "time_ns": reward.time_ns,
        },
        f"reward {reward.id!r}",
    )


def reward_of(row: Row) -> Reward:
    """The reward of a row."""
    return Reward(
        rollout_id=row.rollout_id,
        attempt_id=row.attempt_id,
        value=row.value,
        name=row.name,
        source=row.source,
        role=row.role,
        agent_path=row.agent_path,
        call_id=row.call_id,
        explanation=row.explanation,
        id=row.id,
        time_ns=row.time_ns,
    )


def resource_row(resource: Resource) -> dict[str, Any]:
    """Columns of a version of a resource."""
    return _checked(
        {
            "name": resource.name,
            "version": resource.version,
            "kind": ResourceKind(resource.kind).value,
            "content": to_json(resource.content, f"resource {resource.name!r}", "content"),
            "author": resource.author,
            "parent": resource.parent,
            "note": storable(resource.note),
            "created_ns": resource.created_ns,
            "status": ResourceStatus(resource.status).value,
            "scores": to_json(resource.scores, f"resource {resource.name!r}", "scores"),
        },
        f"resource {resource.name!r}",
    )


def resource_of(row: Row) -> Resource:
    """The resource version of a row."""
    return Resource(
        name=row.name,
        kind=ResourceKind(row.kind),
        content=of_json(row.content),
        version=row.version,
        author=row.author,
        parent=row.parent,
        note=row.note,
        created_ns=row.created_ns,
        status=ResourceStatus(row.status),
        scores=of_json(row.scores),
    )


def run_row(run: Run) -> dict[str, Any]:
    """Columns of a run."""
    where = f"run {run.id!r}"
    return _checked(
        {
            "id": run.id,
            "kind": run.kind,
            "name": storable(run.name),
            "config": to_json(run.config, where, "config"),
            "state": RunState(run.state).value,
            "created_ns": run.created_ns,
            "finished_ns": run.finished_ns,
            "summary": to_json(run.summary, where, "summary"),
        },
        where,
    )


def run_of(row: Row) -> Run:
    """The run of a row."""
    return Run(
        id=row.id,
        kind=row.kind,
        name=row.name,
        config=of_json(row.config),
        state=RunState(row.state),
        created_ns=row.created_ns,
        finished_ns=row.finished_ns,
        summary=of_json(row.summary),
    )


def metrics_row(metrics: Metrics) -> dict[str, Any]:
    """Columns of the figures of one step."""
    return _checked(
        {
            "run_id": metrics.run_id,
            "step": int(metrics.step),
            "stage": metrics.stage,
            "figures": to_json(metrics.values, f"metrics of run {metrics.run_id!r}, step {metrics.step}", "values"),
            "time_ns": metrics.time_ns,
        },
        f"metrics of run {metrics.run_id!r}",
    )


def metrics_of(row: Row) -> Metrics:
    """The figures of a row."""
    return Metrics(run_id=row.run_id, step=row.step, values=of_json(row.figures), stage=row.stage, time_ns=row.time_ns)


def decision_row(decision: Decision) -> dict[str, Any]:
    """Columns of an audit entry."""
    return _checked(
        {
            "id": decision.id,
            "run_id": decision.run_id,
            "kind": decision.kind,
            "subject": storable(decision.subject),
            "evidence": to_json(decision.evidence, f"decision {decision.id!r}", "evidence"),
            "time_ns": decision.time_ns,
        },
        f"decision {decision.id!r}",
    )


def decision_of(row: Row) -> Decision:
    """The audit entry of a row."""
    return Decision(
        run_id=row.run_id,
        kind=row.kind,
        subject=row.subject,
        evidence=of_json(row.evidence),
        id=row.id,
        time_ns=row.time_ns,
    )


def to_json(value: JSON, where: str, field: str) -> str:
    """JSON text of a value; NumPy numbers and arrays count as the numbers and lists that they hold.

    Raises:
        StoreError: JSON cannot hold it; names the record and the field.
    """
    try:
        text = orjson.dumps(value, _plain, _STRICT)
        # It writes what is not finite as null: only where a null stands can there be one.
        if b"null" in text and not _all_finite(value):
            text = orjson.dumps(_without_non_finite(value), _plain, _STRICT)
        return text.decode()
    except (TypeError, ValueError, RecursionError):
        return _in_full(value, where, field)


def of_json(text: str) -> Any:
    """The value of JSON text."""
    if text == "{}":
        return {}
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        # Halves of surrogate pairs, and values nested deeper than 200: the slower reader takes them.
        return json.loads(text)


def storable(text: str | None) -> str | None:
    """Text that every database takes: halves of surrogate pairs (undecodable bytes of a file name) and the character
    NUL become escapes.
    """
    if text is None:
        return None
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row, unless an id or another name in it holds what not every database can keep."""
    for column, value in row.items():
        if isinstance(value, str) and "\0" in value:
            raise StoreError(f"{where}: {column} holds the character NUL. Leave it out. Nothing was written.")
    return row


_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _in_full(value: JSON, where: str, field: str) -> str:
    """The slower way, for what orjson refuses: keys that are no text, halves of surrogate pairs, integers beyond 64
    bits, deep nesting.
    """
    try:
        return _encode(_without_non_finite(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(where, field, error) from error


def _plain(value: object) -> JSON:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    if isinstance(value, float):
        return float(value)
    to_list: Callable[[], JSON] | None = getattr(value, "tolist", None)
    if to_list is not None:
        return to_list()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_plain).encode


def _all_finite(value: JSON) -> bool:
    if value is None or isinstance(value, (str, int)):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_all_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_all_finite, value))
    return _all_finite(_plain(value))


def _without_non_finite(value: JSON) -> JSON:
    if isinstance(value, float):
        return value if math.isfinite(value) else _NON_FINITE.get(value, "NaN")
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {
            _NON_FINITE.get(key, "NaN") if isinstance(key, float) and not math.isfinite(key) else key: (
                _without_non_finite(entry)
            )
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(entry) for entry in value]
    return _without_non_finite(_plain(value))


_NON_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def _not_json(where: str, field: str, error: Exception) -> StoreError:
    return StoreError(
        f"{where}: {field} cannot be stored as JSON: {error}. "
        "Use only strings, numbers, booleans, None, lists and mappings with string keys. Nothing was written."
    )


def _events_json(span: Span) -> str:
    events = [[event.name, event.time_ns, event.attributes] for event in span.events]
    return to_json(events, f"span {span.span_id!r}", "events")


def _finite_number(reward: Reward) -> float:
    try:
        value = math.nan if isinstance(reward.value, (str, bytes)) else float(reward.value)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise RewardError(
            f"reward {reward.name!r} from {reward.source!r} of rollout {reward.rollout_id!r}, "
            f"attempt {reward.attempt_id!r}: {reward.value!r} is no finite number. Nothing was written."
        )
    return value
