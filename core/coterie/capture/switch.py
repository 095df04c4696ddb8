"""Turning capture on and off."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint
from threading import RLock
from typing import Any

from wrapt import register_post_import_hook

from coterie import roles as roles_module
from coterie.capture.content import ContentRules, set_content_rules
from coterie.capture.faults import note_fault
from coterie.plugins import Standing, examine, plugin_entry_points
from coterie.roles import RoleMap, set_role_map

_log = logging.getLogger("coterie")


def instrument(
    *,
    roles: Mapping[str, str] | None = None,
    capture_content: bool = True,
    mask: Callable[[str], str] | None = None,
) -> None:
    """Record LLM calls of the OpenAI and Anthropic SDKs and LiteLLM, and agents of every framework whose plugin is
    installed.

    A second call adds plugins that have become available, replaces the role map if ``roles`` is given, and can only
    make the rules on content stricter: what leaves them out or masks them stays in force until ``uninstrument()``.

    Args:
        roles: agent name → role; a name without an entry becomes its own role in normal form.
        capture_content: False leaves message texts, tool definitions and error messages out of spans.
        mask: applied to every text of a message before it is recorded. The call itself is sent as it is.

    Token ids reveal the text. With ``capture_content=False`` or a ``mask`` they are therefore recorded only in attempts
    of mode train, which cannot do without.

    Raises:
        ConfigError: a role name is not in normal form; nothing was changed.
    """
    with _lock:
        instrument_calls(roles=roles, capture_content=capture_content, mask=mask)
        for entry_point in plugin_entry_points():
            if entry_point.name not in _state.plugins:
                instrumentor = _switched_on(entry_point)
                if instrumentor is not None:
                    _state.plugins[entry_point.name] = instrumentor


def instrument_calls(
    *,
    roles: Mapping[str, str] | None = None,
    capture_content: bool = True,
    mask: Callable[[str], str] | None = None,
) -> None:
    """What ``instrument()`` does, without the plugins: for whoever switches those on one by one.

    Raises:
        ConfigError: a role name is not in normal form; nothing was changed.
    """
    with _lock:
        if roles is not None:
            former = _state.former_roles or roles_module._role_map
            set_role_map(roles)
            _state.former_roles = former
        _state.on = True
        _state.rules = _state.rules.stricter(ContentRules(capture_content, mask))
        set_content_rules(_state.rules)
        for sdk in SDKS:
            _install_once_imported(sdk)


def uninstrument() -> None:
    """Restore everything that ``instrument()`` changed. Streams that are under way are recorded to their end."""
    with _lock:
        for instrumentor in _state.plugins.values():
            instrumentor.uninstrument()
        _state.on = False
        for sdk in SDKS:
            _uninstall(sdk)
        if _state.former_roles is not None:
            set_role_map(_state.former_roles)
        _state.plugins.clear()
        _state.former_roles = None
        _state.rules = ContentRules()
        set_content_rules(_state.rules)


SDKS = {"openai": "openai", "anthropic": "anthropic", "litellm": "litellm.main"}
"""Packages that call models → the module whose import is waited for; ``<package>_sdk.py`` beside this file has the hook
of each."""


def instrumented() -> bool:
    """True from ``instrument()`` until ``uninstrument()``."""
    return _state.on


@dataclass(slots=True)
class _State:
    """What is switched on now."""

    on: bool = False
    plugins: dict[str, Any] = field(default_factory=dict)
    """Entry point name to instrumentor."""
    awaited: set[str] = field(default_factory=set)
    """SDKs whose import is waited for, or was: such a wish cannot be taken back."""
    former_roles: RoleMap | None = None
    """The role map to go back to."""
    rules: ContentRules = field(default_factory=ContentRules)


_state = _State()
_lock = RLock()


def _install_once_imported(sdk: str) -> None:
    """Hook an SDK, at once if the program has imported it, else when it does: importing one takes a second or two."""
    if SDKS[sdk] in sys.modules or sdk in _state.awaited:
        _install(sdk)
    else:
        _state.awaited.add(sdk)
        register_post_import_hook(lambda _: _install(sdk), SDKS[sdk])


def _install(sdk: str) -> None:
    """Runs inside the program's import, so it takes no lock of ours: another thread may hold it and import the same."""
    if not _state.on or SDKS[sdk] not in sys.modules:
        return
    try:
        import_module(f"coterie.capture.{sdk}_sdk").hook.install()
    except Exception:  # noqa: BLE001 - the program's import goes on
        note_fault(f"The {sdk} SDK could not be hooked, so its calls are not recorded")
    if not _state.on:
        _uninstall(sdk)


def _uninstall(sdk: str) -> None:
    module = sys.modules.get(f"coterie.capture.{sdk}_sdk")
    if module is not None:
        module.hook.uninstall()


def _switched_on(entry_point: EntryPoint) -> Any | None:
    """The plugin's instrumentor, instrumented; None when it stays off or was on already."""
    found = examine(entry_point)
    try:
        if found.instrumentor is None:
            if found.error is not None:
                raise found.error
            level = logging.WARNING if found.standing is Standing.UNSUPPORTED else logging.DEBUG
            _log.log(level, "%s stays off: %s.", entry_point.name, found.detail)
            return None
        if found.instrumentor.is_instrumented_by_opentelemetry:
            return None
        found.instrumentor.instrument(skip_dep_check=True)
    except ModuleNotFoundError as missing:
        _log.debug("%s stays off: %s.", entry_point.name, missing)
        return None
    except Exception:  # noqa: BLE001 - one broken plugin must not keep the others, nor the user's program, from running
        _log.exception("%s could not be switched on; its framework's agents go unnamed.", entry_point.name)
        return None
    return found.instrumentor
