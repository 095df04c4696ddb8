"""Following a call or a stream of the framework's from its start to its end, without being in its way.

A ContextVar that is set in an async generator leaks into whoever reads it. So a stream is taken step by step: what
stands in the context stands there while a step runs, and is gone before the reader gets the item.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from coterie.capture.faults import note_fault

P = ParamSpec("P")
Result = TypeVar("Result")


class Watch(Protocol):
    """Follows one call or stream."""

    def entered(self) -> AbstractContextManager[None]:
        """What stands in the context while the framework's own code runs."""
        ...

    def saw(self, item: Any) -> None:
        """The result of a call, or one item of a stream."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """The call or stream is over; with None also if its reader went away."""
        ...


def beginning(begin: Callable[P, Watch | None]) -> Callable[P, Watch | None]:
    """A function that begins a watch, whose faults are logged once: the call then goes on unwatched."""

    def begin_or_not(*args: P.args, **kwargs: P.kwargs) -> Watch | None:
        try:
            return begin(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
            note_fault(f"AutoGen: {begin.__name__} failed, so something is not recorded")
            return None

    return begin_or_not


async def watched_call(watch: Watch | None, call: Callable[[], Awaitable[Result]]) -> Result:
    """Await a call under a watch."""
    if watch is None:
        return await call()
    try:
        with watch.entered():
            result = await call()
    except BaseException as error:
        _tell(watch.ended, error)
        raise
    _tell(watch.saw, result)
    _tell(watch.ended, None)
    return result


def watched_sync_call(watch: Watch | None, call: Callable[[], Result]) -> Result:
    """Make a plain call under a watch."""
    if watch is None:
        return call()
    try:
        with watch.entered():
            result = call()
    except BaseException as error:
        _tell(watch.ended, error)
        raise
    _tell(watch.saw, result)
    _tell(watch.ended, None)
    return result


async def watched_stream(begin: Callable[[], Watch | None], stream: Any) -> AsyncGenerator[Any, None]:
    """Give a stream's items on under a watch, which begins with the first step."""
    watch = begin()
    here = watch.entered if watch is not None else nullcontext
    step: Callable[[], Awaitable[Any]] = stream.__anext__
    error: BaseException | None = None
    try:
        while True:
            try:
                with here():
                    item = await step()
            except StopAsyncIteration:
                return
            if watch is not None:
                _tell(watch.saw, item)
            try:
                yield item
            except GeneratorExit:
                raise
            except BaseException as thrown:  # noqa: BLE001 - the reader's athrow() is for the stream
                step = partial(stream.athrow, thrown)
            else:
                step = stream.__anext__
    except GeneratorExit:
        raise
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            if hasattr(stream, "aclose"):
                with here():
                    await stream.aclose()
        finally:
            if watch is not None:
                _tell(watch.ended, error)
            error = None  # It leads back to this frame.


def _tell(tell: Callable[[Any], None], what: Any) -> None:
    try:
        tell(what)
    except Exception:  # noqa: BLE001 - whatever it is, the user's run goes on
        note_fault("AutoGen: an activation, tool call or LLM call could not be recorded to its end")
