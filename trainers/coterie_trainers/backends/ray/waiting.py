"""Waiting for what actors do: with a time limit, and with errors that say what happened instead of where in Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from coterie.errors import BackendError


def results(refs: Sequence[Any], seconds: float) -> list[Any]:
    """What these calls gave. The first failure ends the wait: ranks that lost one of them wait for it in vain.

    Args:
        refs: Ray's references of the calls.
        seconds: How long all of them may take together.

    Raises:
        BackendError: one failed, its process died, or they took longer.
    """
    deadline = time.monotonic() + seconds
    pending = list(refs)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise BackendError(f"{len(pending)} of {len(refs)} processes did not finish within {seconds:.0f} s")
        try:
            ray.get(done)
        except RayError as error:
            raise BackendError(told(error)) from None
    return list(ray.get(list(refs)))


def told(error: BaseException) -> str:
    """What an error of Ray is about."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        # Our own errors are sentences; of others the name says as much as the text.
        return str(cause) if isinstance(cause, BackendError) else f"{type(cause).__name__}: {cause}"
    if isinstance(error, RayActorError):
        return f"a process on the cluster died: {' '.join(str(error).split())}"
    return f"{type(error).__name__}: {error}"
