"""``@coterie.rollout``: marks the function that runs the team once on one task and judges what came out."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from coterie.errors import ConfigError
from coterie.vocabulary import Endpoint, Mode, Task

P = ParamSpec("P")
R = TypeVar("R")


def rollout(function: Callable[P, R]) -> RolloutFunction[P, R]:
    """Mark a plain function, sync or async, as one that a runner may call for each task.

    The function asks by parameter name for what it needs, and gets nothing else:

    - ``task``: the ``Task`` (``task.input``, ``task.reference``, ``task.metadata``).
    - ``prompts``: the pinned prompts, a mapping of role to text; empty when none is pinned.
    - ``endpoint``: the ``Endpoint`` that serves all roles, else the first one; None when none is pinned.
    - ``endpoints``: all pinned endpoints, a mapping of resource name to ``Endpoint``.
    - ``mode``: the ``Mode`` (train, val, test, production).

    It returns the reward: a finite number for the team, or a mapping of role to number (the key ``"team"`` is the
    team's own), or None if it called ``coterie.reward`` itself. Called directly, it is the plain function that it was.

    Raises:
        ConfigError: ``function`` is no function, or it has a required parameter that nobody fills.
    """
    return function if isinstance(function, RolloutFunction) else RolloutFunction(function)


@dataclass(frozen=True, slots=True)
class Given:
    """What a rollout function may ask for. The field names are the parameter names."""

    task: Task
    prompts: Mapping[str, str]
    endpoint: Endpoint | None
    endpoints: Mapping[str, Endpoint]
    mode: Mode


GIVEN = tuple(Given.__dataclass_fields__)
"""The parameter names that a rollout function may use."""


class RolloutFunction(Generic[P, R]):
    """A function that ``@coterie.rollout`` marked."""

    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R], origin: str | None = None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.asynchronous = _asynchronous(function)
        self.asks_for = _asked_parameters(function, self.name)
        self._origin = origin

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<rollout function {self.name}({', '.join(self.asks_for)})>"

    def play(self, given: Given) -> Any:
        """Call the function with what it asks for; a coroutine if it is asynchronous."""
        call: Callable[..., Any] = self.function
        return call(**{name: getattr(given, name) for name in self.asks_for})

    def found_at(self, origin: str) -> None:
        """Remember where it was loaded from."""
        self._origin = origin

    @property
    def origin(self) -> str:
        """Where another process finds it: ``file.py:name`` or ``package.module:name``, as ``load_app`` takes it.

        Raises:
            ConfigError: it lives inside another function, or in an interactive session.
        """
        if self._origin is not None:
            return self._origin
        module = getattr(self.function, "__module__", None) or "__main__"
        name = getattr(self.function, "__qualname__", "<unnamed>")
        if "<" in name or "." in name:
            raise ConfigError(
                f"The rollout function {name!r} of module {module!r} cannot be found by another process. "
                "Define it at the top level of a file, or use isolation='none'."
            )
        if module != "__main__":
            return f"{module}:{name}"
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file is None:
            raise ConfigError(
                f"The rollout function {name!r} was typed into an interactive session, so another process cannot "
                "find it. Put it in a file, or use isolation='none'."
            )
        return f"{file}:{name}"


def _asynchronous(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(
            f"The rollout function {getattr(function, '__name__', function)!r} is a generator. "
            "Return the reward instead of yielding."
        )
    # A callable object may have an async __call__; a plain function's own __call__ says nothing.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _asked_parameters(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"@coterie.rollout marks a function, not {function!r}. Write it above 'def' or 'async def'.")
    asked = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in GIVEN and parameter.kind is not parameter.POSITIONAL_ONLY:
            asked.append(parameter.name)
        elif parameter.default is parameter.empty:
            why = "is positional-only" if parameter.name in GIVEN else "is none that Coterie knows"
            raise ConfigError(
                f"The rollout function {name!r} requires the parameter {parameter.name!r}, which {why}. "
                f"It may ask for {', '.join(GIVEN)}; give every other parameter a default."
            )
    return tuple(asked)
