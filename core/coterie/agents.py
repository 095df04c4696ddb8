"""The plain-Python path: say in your own code who acts, which tools are called, and who hands over to whom.

``agent`` and ``workflow`` are blocks (``with``, ``async with``) and decorators of functions, generators and their async
kinds; ``tool`` is a decorator. Until ``coterie.instrument()`` they do nothing. What your code returns or raises passes
through unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from types import TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span

from coterie import structure
from coterie.capture.faults import guarded, note_fault, warn_once
from coterie.capture.switch import instrumented
from coterie.episodes import EdgeKind
from coterie.roles import Identity, acting_as, child_identity, current_acting

F = TypeVar("F", bound=Callable[..., Any])
Arguments = Callable[[], Mapping[str, Any]]
"""Gives the arguments of a decorated function's call."""


class Block:
    """Code that has a span of its own each time that it runs: a ``with`` or ``async with`` block, or a decorated function."""

    def __init__(self, name: str, open_span: Callable[[str, Arguments], _Opened]) -> None:
        self.name = name
        self._open_span = open_span
        self._running: list[_Entered] = []

    def __enter__(self) -> Block:
        opened = self._opened(dict)
        if opened is not None:
            entered = _Entered(self, opened, _entered.get())
            _entered.set(entered)
            self._running.append(entered)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = _entered.get()
        if entered is not None and entered.block is self:
            _entered.set(entered.around)
            self._running.remove(entered)
        elif self._running:
            # An async generator may be closed in another context than the one in which its block began.
            entered = self._running.pop()
        else:
            return
        entered.leave(error)

    async def __aenter__(self) -> Block:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: F) -> F:
        """Decorate a function: each call runs in a block of its own."""
        return _decorated(function, self._opened)

    def _opened(self, arguments: Arguments) -> _Opened | None:
        if not _recording():
            return None
        try:
            return self._open_span(self.name, arguments)
        except Exception:  # noqa: BLE001 - a fault of ours: the user's code runs all the same
            note_fault(f"The span of {self.name!r} could not be opened")
            return None


def agent(name: str) -> Block:
    """Say which agent acts: ``with coterie.agent("coder"):``, ``async with``, or as a decorator of a function.

    Everything inside is the agent's doing: LLM calls, tools, and other agents, which it so calls and whose result it
    goes on with (a delegation). A generator acts as the agent while its own code runs, not while the code runs that
    reads from it; so decorate a generator, rather than to write the block inside it.
    """
    return Block(name, _open_agent)


def workflow(name: str) -> Block:
    """Say that a block or function is one run of a team."""
    return Block(name, _open_workflow)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(*, name: str | None = None) -> Callable[[F], F]: ...
def tool(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Record each call of a function, sync or async, as a tool call of the acting agent, with arguments and result.

    Use it as ``@coterie.tool``, or ``@coterie.tool(name="search")`` where the model knows it by another name.
    """
    if function is None:
        return partial(_as_tool, name=name)
    return _as_tool(function, name=name)


def handoff(to: str, source: str | None = None) -> None:
    """Say that control moves to the agent ``to`` and does not come back by itself. If that agent then begins inside the
    block of the one that hands over, this is no delegation.

    Args:
        to: the name of the agent that goes on.
        source: the agent that hands over; by default the acting one.
    """
    if _recording():
        _record_handoff(to, source)


class _Opened:
    """An open span, and who acts under it."""

    def __init__(self, span: Span, identity: Identity | None) -> None:
        self.span = span
        self.identity = identity
        self.records_result = False
        """True for a tool call."""
        self.result: Any = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Act so within the block, in the present context."""
        token = otel_context.attach(trace.set_span_in_context(self.span))
        try:
            if self.identity is None:
                yield
            else:
                with acting_as(self.identity, self.span):
                    yield
        finally:
            # The block may end in another context, in which nothing of it is set.
            if trace.get_current_span() is self.span:
                otel_context.detach(token)

    def end(self, error: BaseException | None) -> None:
        """End the span; whoever stops reading a generator ends it without an error."""
        if error is not None and not isinstance(error, GeneratorExit):
            structure.end(self.span, error)
        elif self.records_result:
            structure.end_tool(self.span, self.result)
        else:
            structure.end(self.span)


class _Entered:
    """A ``with`` block under way."""

    def __init__(self, block: Block, opened: _Opened, around: _Entered | None) -> None:
        self.block = block
        self.around = around
        """The block around it in this context."""
        self._opened = opened
        self._active = opened.active()
        self._active.__enter__()

    def leave(self, error: BaseException | None) -> None:
        try:
            self._active.__exit__(None, None, None)
        except ValueError:
            pass  # entered in another context, which is gone
        finally:
            _end(self._opened, error)


_entered: ContextVar[_Entered | None] = ContextVar("coterie_entered", default=None)
"""The innermost ``with`` block of this module in this context."""


def _recording() -> bool:
    return instrumented() and is_instrumentation_enabled()


def _open_agent(name: str, arguments: Arguments) -> _Opened:  # noqa: ARG001
    around = current_acting()
    identity = child_identity(name, around.identity if around else None)
    span = structure.start_agent(identity)
    if around is not None and around.identity.agent != name and not _handed_over_to(name, around.span):
        caller = around.span if around.span is not None and around.span.is_recording() else span
        structure.add_edge(caller, EdgeKind.DELEGATION, around.identity.agent, name)
    return _Opened(span, identity)


def _open_workflow(name: str, arguments: Arguments) -> _Opened:  # noqa: ARG001
    around = current_acting()
    identity = around.identity if around else None
    return _Opened(structure.start_workflow(name, identity=identity), identity)


def _open_tool(name: str, arguments: Arguments) -> _Opened:
    around = current_acting()
    identity = around.identity if around else None
    opened = _Opened(structure.start_tool(name, identity=identity, arguments=arguments()), identity)
    opened.records_result = True
    return opened


@guarded
def _record_handoff(to: str, source: str | None) -> None:
    acting = current_acting()
    giver = source or (acting.identity.agent if acting is not None else None)
    span = acting.span if acting is not None and acting.span is not None else trace.get_current_span()
    if giver is None or not span.is_recording():
        warn_once(
            f"coterie.handoff({to!r}) was called where no agent acts, so it is not recorded: call it inside "
            "`with coterie.agent(…)`, or say source=… inside a recording"
        )
        return
    structure.add_edge(span, EdgeKind.HANDOFF, giver, to)
    _handed_over.setdefault(span, set()).add(to)


_handed_over: WeakKeyDictionary[Span, set[str]] = WeakKeyDictionary()
"""Span of an agent → those that it handed over to and that have not begun yet."""


def _handed_over_to(name: str, span: Span | None) -> bool:
    """True once for each hand-off: the agent that begins inside the giver's block was not called by it as well."""
    targets = _handed_over.get(span, set()) if span is not None else set()
    if name not in targets:
        return False
    targets.discard(name)
    return True


_end = guarded(_Opened.end, what="The span of an agent, tool or workflow could not be ended")


@contextmanager
def _running(opened: _Opened) -> Iterator[None]:
    """One run of a function from its beginning to its end."""
    try:
        with opened.active():
            yield
    except BaseException as error:
        _end(opened, error)
        raise
    _end(opened, None)


def _as_tool(function: F, *, name: str | None) -> F:
    return Block(name or str(getattr(function, "__name__", "tool")), _open_tool)(function)


def _decorated(function: F, opened: Callable[[Arguments], _Opened | None]) -> F:
    if inspect.isasyncgenfunction(function):
        made: Callable[..., Any] = _async_generator(function, opened)
    elif inspect.isgeneratorfunction(function):
        made = _generator(function, opened)
    elif inspect.iscoroutinefunction(function):
        made = _coroutine(function, opened)
    else:
        made = _plain(function, opened)
    return wraps(function)(made)  # type: ignore[return-value]


def _plain(function: Callable[..., Any], opened: Callable[[Arguments], _Opened | None]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        run = opened(partial(_by_name, function, args, kwargs))
        if run is None:
            return function(*args, **kwargs)
        with _running(run):
            run.result = function(*args, **kwargs)
            return run.result

    return run


def _coroutine(function: Callable[..., Any], opened: Callable[[Arguments], _Opened | None]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        run = opened(partial(_by_name, function, args, kwargs))
        if run is None:
            return await function(*args, **kwargs)
        with _running(run):
            run.result = await function(*args, **kwargs)
            return run.result

    return run


def _generator(function: Callable[..., Any], opened: Callable[[Arguments], _Opened | None]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = function(*args, **kwargs)
        run = opened(partial(_by_name, function, args, kwargs))
        if run is None:
            return (yield from steps)
        step = partial(next, steps)
        try:
            while True:
                # Between the steps the code that reads runs, in the same context: there nobody acts.
                with run.active():
                    try:
                        value = step()
                    except StopIteration as stop:
                        result = stop.value
                        break
                try:
                    sent = yield value
                except GeneratorExit:
                    with run.active():
                        steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - it is thrown into the user's generator
                    step = partial(steps.throw, error)
                else:
                    step = partial(steps.send, sent)
        except BaseException as error:
            _end(run, error)
            raise
        _end(run, None)
        return result

    return run


def _async_generator(function: Callable[..., Any], opened: Callable[[Arguments], _Opened | None]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = function(*args, **kwargs)
        run = opened(partial(_by_name, function, args, kwargs))
        step = steps.__anext__
        try:
            while True:
                with nullcontext() if run is None else run.active():
                    try:
                        value = await step()
                    except StopAsyncIteration:
                        break
                try:
                    sent = yield value
                except GeneratorExit:
                    with nullcontext() if run is None else run.active():
                        await steps.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - it is thrown into the user's generator
                    step = partial(steps.athrow, error)
                else:
                    step = partial(steps.asend, sent)
        except BaseException as error:
            if run is not None:
                _end(run, error)
            raise
        if run is not None:
            _end(run, None)

    return run


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call by parameter name, without the object that a method belongs to."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # a wrong call, which the function itself refuses, or no signature
        return dict(kwargs)
    return {name: value for at, (name, value) in enumerate(bound.items()) if at or name not in ("self", "cls")}
