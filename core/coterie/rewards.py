"""Rewards: ``coterie.reward`` inside a rollout, ``coterie.calls`` to look at what was done, and what may be returned."""

from __future__ import annotations

import logging
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import RewardError
from coterie.roles import role_of
from coterie.scope import CallSummary, current_scope
from coterie.vocabulary import Reward

_log = logging.getLogger(__name__)

TEAM = "team"
"""The key of the team's own reward in a returned mapping."""


def reward(
    value: float,
    *,
    name: str = "reward",
    role: str | None = None,
    agent_path: str | None = None,
    call_id: str | None = None,
    source: str = "code",
    explanation: str | None = None,
) -> None:
    """Give a reward to what the running attempt did: to one call, an agent path, a role, or (by default) the team.

    May be called any number of times, from any thread or task of the attempt. Outside an attempt it does nothing, so
    that production code may keep the line.

    Raises:
        RewardError: ``value`` is no finite number, or ``role`` is no role name.
    """
    number = _finite(value, f"coterie.reward({name!r})")
    if role is not None:
        _check_role(role, f"coterie.reward({name!r})")
    scope = current_scope()
    if scope is None:
        _log.debug("coterie.reward(%r, name=%r) outside an attempt: ignored", value, name)
        return
    scope.sink.add_reward(
        Reward(
            rollout_id=scope.rollout_id,
            attempt_id=scope.attempt_id,
            value=number,
            name=name,
            source=source,
            role=role,
            agent_path=agent_path,
            call_id=call_id,
            explanation=explanation,
        )
    )


def calls() -> list[CallSummary]:
    """The LLM calls that the running attempt has made so far, in the order in which they ended; empty outside one."""
    scope = current_scope()
    return [] if scope is None else list(scope.calls)


def returned_rewards(value: Any, *, rollout_id: str, attempt_id: str, gave: int) -> Sequence[Reward]:
    """The rewards that a rollout function's return value means.

    Args:
        value: What it returned.
        rollout_id: The rollout they are for.
        attempt_id: The attempt they are for.
        gave: How many rewards ``coterie.reward`` gave in the same attempt; None is a valid return value only then.

    Raises:
        RewardError: the value is neither a finite number, nor a mapping of role to finite number, nor a permitted None.
    """
    if value is None or (isinstance(value, Mapping) and not value):
        if gave:
            return ()
        raise RewardError(
            f"The rollout function returned {value!r} and gave no reward. Return a finite number, a mapping of role to "
            "number, or call coterie.reward(...) inside. Is a 'return' missing?"
        )
    if isinstance(value, Mapping):
        return [
            Reward(rollout_id, attempt_id, _finite(number, f"The reward of {role!r}"), role=_returned_role(role))
            for role, number in value.items()
        ]
    return [Reward(rollout_id, attempt_id, _finite(value, "The rollout function's return value"))]


def _returned_role(key: object) -> str | None:
    if key == TEAM:
        return None
    _check_role(key, "The rollout function's returned mapping")
    return str(key)


def _check_role(role: object, where: str) -> None:
    if isinstance(role, str) and re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", role):
        return
    meant = f" Did you mean {role_of(role)!r}?" if isinstance(role, str) and role.strip() else ""
    raise RewardError(
        f"{where} names the role {role!r}, which is no role name: lower-case letters, digits, '_', '-' and '.'.{meant}"
    )


def _finite(value: Any, what: str) -> float:
    # A zero-dimensional array or tensor is a number to its user.
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.inf
        if math.isfinite(number):
            return number
    shown = repr(value)
    raise RewardError(
        f"{what} is {shown if len(shown) <= 200 else shown[:200] + '…'} ({type(value).__name__}), which is no finite "
        "number. Allowed are int, float and bool, or (returned) a mapping of role to such a number."
    )
