"""Methods of CrewAI's classes wrapped for as long as recording is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import note_fault


class Entered(Protocol):
    """What a wrapped method is run in. Leaving it must not raise."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None: ...


Begin = Callable[[Any, Sequence[Any], dict[str, Any]], Entered | None]
"""Gets the object, the arguments and the keyword arguments of a call. None: the call is not recorded."""


class Patches:
    """What was wrapped, and how it is put back."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[type, str, Callable[..., Any], Any]] = []

    def around(self, owner: type, name: str, begin: Begin) -> None:
        """Run a method within what ``begin`` gives. A class that does not define it is left alone."""
        self._wrap(owner, name, lambda original: _running_in(original, begin))

    def around_async(self, owner: type, name: str, begin: Begin) -> None:
        """The same for a coroutine function."""
        self._wrap(owner, name, lambda original: _awaited_in(original, begin))

    def before(self, owner: type, name: str, tell: Callable[..., None]) -> None:
        """Call ``tell`` with the arguments of a method, before it."""
        self._wrap(owner, name, lambda original: _told_first(original, tell))

    def restore(self) -> None:
        """Put everything back."""
        while self._wrapped:
            owner, name, original, wrapper = self._wrapped.pop()
            wrapper.off = True
            # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
            if owner.__dict__.get(name) is wrapper:
                setattr(owner, name, original)

    def _wrap(self, owner: type, name: str, make: Callable[[Callable[..., Any]], Any]) -> None:
        original = owner.__dict__.get(name)
        if original is None:
            return
        wrapper = make(original)
        wrapper.off = False
        setattr(owner, name, wrapper)
        self._wrapped.append((owner, name, original, wrapper))


def _running_in(original: Callable[..., Any], begin: Begin) -> Any:
    @wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        entered = None if wrapper.off else _begun(begin, self, args, kwargs)  # type: ignore[attr-defined]
        if entered is None:
            return original(self, *args, **kwargs)
        with entered:
            return original(self, *args, **kwargs)

    return wrapper


def _awaited_in(original: Callable[..., Any], begin: Begin) -> Any:
    @wraps(original)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        entered = None if wrapper.off else _begun(begin, self, args, kwargs)  # type: ignore[attr-defined]
        if entered is None:
            return await original(self, *args, **kwargs)
        with entered:
            return await original(self, *args, **kwargs)

    return wrapper


def _told_first(original: Callable[..., Any], tell: Callable[..., None]) -> Any:
    @wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not wrapper.off:  # type: ignore[attr-defined]
            tell(*args, **kwargs)
        return original(self, *args, **kwargs)

    return wrapper


def _begun(begin: Begin, subject: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Entered | None:
    if not is_instrumentation_enabled():
        return None
    try:
        return begin(subject, args, kwargs)
    except Exception:  # noqa: BLE001 - the user's run goes on, unrecorded
        note_fault(f"CrewAI's {type(subject).__name__} could not be recorded")
        return None
