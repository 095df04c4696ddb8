"""Wrapping methods of classes, their subclasses included, and putting everything back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import ModuleType
from typing import Any
from weakref import ref

from coterie.wrapping import as_function, derived_from

Make = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the replacement of a function."""


class Wrappers:
    """Everything that was wrapped, with the way back. False while it is empty."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[ref[type], str, Any, Any]] = []
        """Class, name, what was there, what is there now. The class may be one of the user's that goes away."""
        self._watched: list[tuple[ref[type], Any]] = []
        """Classes whose new subclasses are wrapped, and the hook that does it."""

        self._replaced: list[tuple[ModuleType, str, Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._wrapped)

    def wrap(self, owner: type, name: str, make: Make) -> None:
        """Replace a method that the class itself defines; one that it does not define, or that is abstract, is left."""
        former = owner.__dict__.get(name)
        function = former.__func__ if isinstance(former, staticmethod) else former
        if not callable(function) or getattr(function, "__isabstractmethod__", False):
            return
        is_static = isinstance(former, staticmethod)
        replacement: Any = wraps(function)(make(function if is_static else as_function(function)))
        if is_static:
            replacement = staticmethod(replacement)
        setattr(owner, name, replacement)
        self._wrapped.append((ref(owner), name, former, replacement))

    def wrap_family(self, root: type, methods: Mapping[str, Make]) -> None:
        """Replace methods in a class and in all its subclasses, those that are defined later included."""
        for owner in {root, *derived_from(root)}:
            for name, make in methods.items():
                self.wrap(owner, name, make)

        family: Any = root

        def init_subclass(cls: Any, /, **kwargs: Any) -> None:
            super(family, cls).__init_subclass__(**kwargs)
            for name, make in methods.items():
                self.wrap(cls, name, make)

        if "__init_subclass__" not in root.__dict__:
            hook: Any = classmethod(init_subclass)
            family.__init_subclass__ = hook
            self._watched.append((ref(root), hook))

    def replace(self, module: ModuleType, name: str, replacement: Any) -> None:
        """Replace what a name in a module stands for."""
        self._replaced.append((module, name, getattr(module, name), replacement))
        setattr(module, name, replacement)

    def restore(self) -> None:
        """Put everything back. What somebody else has wrapped since stays theirs, with ours idle inside it."""
        while self._wrapped:
            owner_ref, name, former, replacement = self._wrapped.pop()
            owner = owner_ref()
            if owner is not None and owner.__dict__.get(name) is replacement:
                setattr(owner, name, former)
        while self._replaced:
            module, name, former, replacement = self._replaced.pop()
            if getattr(module, name, None) is replacement:
                setattr(module, name, former)
        while self._watched:
            owner_ref, hook = self._watched.pop()
            owner = owner_ref()
            if owner is not None and owner.__dict__.get("__init_subclass__") is hook:
                del owner.__init_subclass__
