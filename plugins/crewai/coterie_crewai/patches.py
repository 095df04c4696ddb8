"""Methods of CrewAI's classes wrapped for as long as recording is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from threading import RLock
from typing import Any, Protocol

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.capture.faults import note_fault
from coterie.wrapping import as_function


class Entered(Protocol):
    """What a wrapped method is run in. Leaving it must not raise."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None: ...


Begin = Callable[[Any, Sequence[Any], dict[str, Any]], Entered | None]
"""Gets the object, the arguments and the keyword arguments of a call. None: the call is not recorded."""


class Patches:
    """What was wrapped, and how it is put back.

    A class that does not define a method itself is left alone, and so is a method that is wrapped already. May be used
    from any thread.
    """

    def __init__(self) -> None:
        self._wrapped: dict[tuple[type, str], tuple[Callable[..., Any], Any]] = {}
        """Class and method name → original and wrapper."""
        self._on = False
        self._lock = RLock()

    def start(self) -> None:
        """Allow wrapping."""
        self._on = True

    def around(self, owner: type, name: str, begin: Begin) -> None:
        """Run a method within what ``begin`` gives."""
        self.instead(owner, name, lambda original: _running_in(original, begin))

    def around_async(self, owner: type, name: str, begin: Begin) -> None:
        """The same for a coroutine function."""
        self.instead(owner, name, lambda original: _awaited_in(original, begin))

    def before(self, owner: type, name: str, tell: Callable[[Any, Any], None]) -> None:
        """Call ``tell`` with the two arguments of a method, before it."""
        self.instead(owner, name, lambda original: _told_first(original, tell))

    def instead(self, owner: type, name: str, make: Callable[[Callable[..., Any]], Any]) -> None:
        """Put what ``make`` makes of a method in its place. It must do as the method does once its ``off`` is true."""
        if (owner, name) in self._wrapped or name not in owner.__dict__:
            return
        with self._lock:
            if (owner, name) in self._wrapped or not self._on:
                return
            original = owner.__dict__[name]
            wrapper = make(as_function(original))
            wrapper.off = False
            setattr(owner, name, wrapper)
            self._wrapped[owner, name] = original, wrapper

    def restore(self) -> None:
        """Put everything back."""
        with self._lock:
            self._on = False
            while self._wrapped:
                (owner, name), (original, wrapper) = self._wrapped.popitem()
                wrapper.off = True
                # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
                if owner.__dict__.get(name) is wrapper:
                    setattr(owner, name, original)


patches = Patches()
"""All that is wrapped in this process."""


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


def _told_first(original: Callable[..., Any], tell: Callable[[Any, Any], None]) -> Any:
    @wraps(original)
    def wrapper(self: Any, source: Any, event: Any) -> Any:
        if not wrapper.off:  # type: ignore[attr-defined]
            tell(source, event)
        return original(self, source, event)

    return wrapper


def _begun(begin: Begin, subject: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Entered | None:
    if not is_instrumentation_enabled():
        return None
    try:
        return begin(subject, args, kwargs)
    except Exception:  # noqa: BLE001 - the user's run goes on, unrecorded
        note_fault(f"CrewAI's {type(subject).__name__} could not be recorded")
        return None
