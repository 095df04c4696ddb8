"""Who acts: the agent identity of the running code, kept in a ContextVar, and the map from agent names to roles.

A plugin's job is to set the identity; capture reads it when an LLM call leaves. A ContextVar follows asyncio tasks
and is copied into threads by ``contextvars.copy_context``, so parallel agents never see each other's identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache

from opentelemetry.trace import Span

from coterie.errors import ConfigError
from coterie.scope import current_scope


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent that acts now."""

    agent: str
    """Its name as the framework has it."""
    role: str
    """The role it plays."""
    path: tuple[str, ...]
    """Agent names from the outermost to this one."""

    @property
    def path_text(self) -> str:
        """The path as spans carry it: ``manager/coder``."""
        return "/".join(self.path)


@dataclass(frozen=True, slots=True)
class RoleMap:
    """Maps agent names to roles, so that roles stay the same across frameworks and renames.

    ``names`` maps an agent name to a role; a name without an entry becomes its own role in normal form
    (``"Senior Data Analyst"`` → ``"senior_data_analyst"``).
    """

    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for agent, role in self.names.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", role):
                raise ConfigError(
                    f"roles: {agent!r} is mapped to {role!r}, which is no role name. "
                    "Use lower-case letters, digits, '_', '-' and '.', starting with a letter or digit."
                )

    def role(self, agent: str) -> str:
        """The role that the agent of this name plays."""
        mapped = self.names.get(agent)
        if mapped is not None:
            return mapped
        return _normal_form(agent)


@lru_cache(maxsize=1_000)
def _normal_form(agent: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", agent.lower()).strip("_") or "agent"


@dataclass(frozen=True, slots=True)
class Acting:
    """Who acts now, and the span of what it does."""

    identity: Identity
    span: Span | None = None
    """What spans made in its name hang under; None means the current OpenTelemetry span."""


_acting: ContextVar[Acting | None] = ContextVar("coterie_acting", default=None)
_acting_sources: list[Callable[[], Acting | None]] = []
_role_map: RoleMap = RoleMap()


def set_role_map(names: Mapping[str, str] | RoleMap) -> None:
    """Set the process-wide map from agent names to roles.

    Raises:
        ConfigError: a role name is not in normal form.
    """
    global _role_map
    _role_map = names if isinstance(names, RoleMap) else RoleMap(dict(names))


def role_of(agent: str) -> str:
    """The role of an agent name: as the run of the current attempt says, else under the process-wide map."""
    scope = current_scope()
    told = scope.agents.get(agent) if scope is not None else None
    return _role_map.role(agent) if told is None else told


def current_acting() -> Acting | None:
    """The acting agent and its span, or None outside any agent.

    What ``acting_as`` set and what the frameworks' plugins say may differ; the deeper of them acts: an agent that a
    framework runs inside an ``acting_as`` block, or a block inside the framework's agent.
    """
    acting = _acting.get()
    for source in _acting_sources:
        told = source()
        if told is not None and (acting is None or len(told.identity.path) > len(acting.identity.path)):
            acting = told
    return acting


def current_identity() -> Identity | None:
    """The acting agent, or None outside any agent."""
    acting = current_acting()
    return None if acting is None else acting.identity


def add_acting_source(source: Callable[[], Acting | None]) -> None:
    """Let a plugin say who acts where it cannot set the ContextVar. The source must be quick and must not raise.

    Adding it again changes nothing.
    """
    if source not in _acting_sources:
        _acting_sources.append(source)


def remove_acting_source(source: Callable[[], Acting | None]) -> None:
    """Forget a source. One that was never added is no error."""
    if source in _acting_sources:
        _acting_sources.remove(source)


def child_identity(agent: str, parent: Identity | None = None) -> Identity:
    """The identity of ``agent`` called by ``parent`` (default: the acting agent). An agent under itself adds no level."""
    parent = parent if parent is not None else current_identity()
    path = parent.path if parent else ()
    if not path or path[-1] != agent:
        path = (*path, agent)
    return Identity(agent=agent, role=role_of(agent), path=path)


@contextmanager
def acting_as(identity: Identity | str, span: Span | None = None) -> Iterator[Identity]:
    """Make an agent the acting one within the block; a plain name becomes a child of the agent acting now.

    Args:
        identity: who acts.
        span: what spans made in its name hang under; None leaves it as it is around the block.
    """
    around = current_acting()
    who = child_identity(identity, around.identity if around else None) if isinstance(identity, str) else identity
    token = _acting.set(Acting(who, span if span is not None else around.span if around else None))
    try:
        yield who
    finally:
        _acting.reset(token)


@contextmanager
def nobody_acting() -> Iterator[None]:
    """Forget within the block who acts around it: what starts there is no agent's doing."""
    token = _acting.set(None)
    try:
        yield
    finally:
        _acting.reset(token)
