"""What is recorded: everything in the process, or agents and teams that were registered one by one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakSet

from coterie.spans import leave_out_spans_of, take_in_spans_of
from coterie_autogen.wrapping import Wrappers

Target = TypeVar("Target")

AUTOGENS_TRACERS = "autogen"
"""How the names of the tracers begin by which AutoGen itself tells of agents, tools and messages."""


def register(target: Target) -> Target:
    """Record what one agent or team does, and all that runs inside it, without switching on the whole process.

    Args:
        target: an AutoGen agent or team, or a classic ``ConversableAgent``. It is not changed.

    Returns:
        The same object, so that ``team = register(RoundRobinGroupChat([...]))`` reads well.
    """
    with _lock:
        _registered.add(target)
        _wrap_or_restore()
    return target


def unregister(target: Any) -> None:
    """Undo ``register``. An object that was never registered is no error."""
    with _lock:
        _registered.discard(target)
        _wrap_or_restore()


def record_everything(on: bool) -> None:
    """Record every agent and team of the process, or only what was registered."""
    global _everything
    with _lock:
        _everything = on
        _wrap_or_restore()


def is_recorded(target: Any) -> bool:
    """True if what an outermost agent or team does is to be recorded; None asks whether everything is."""
    return _everything or (target is not None and bool(_registered) and target in _registered)


def is_classic_installed() -> bool:
    """True if the package ``autogen`` is that of classic AG2: from 1.0 on AG2 is another framework."""
    try:
        return version("ag2").startswith("0.") and find_spec("autogen") is not None
    except PackageNotFoundError:
        return False


_everything = False
_registered: WeakSet[Any] = WeakSet()
_lock = RLock()
_wrappers = Wrappers()


def _wrap_or_restore() -> None:
    if not (_everything or _registered):
        _wrappers.restore()
        take_in_spans_of(AUTOGENS_TRACERS)
        return
    if _wrappers:
        return
    if find_spec("autogen_core") is not None:
        from coterie_autogen import hooks

        hooks.install(_wrappers)
    if is_classic_installed():
        from coterie_autogen import classic

        classic.install(_wrappers)
    leave_out_spans_of(AUTOGENS_TRACERS)
