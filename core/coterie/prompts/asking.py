"""How running code gets the prompts that are pinned to its attempt: ``coterie.prompt``, and what a rollout function is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coterie.errors import PromptError
from coterie.prompts.parts import SYSTEM, check_part
from coterie.prompts.template import render
from coterie.prompts.versions import PromptVersion
from coterie.scope import AttemptScope, current_scope


def prompt(role: str, /, default: str | None = None, *, part: str = SYSTEM, **values: object) -> str:
    """A role's prompt, as the running attempt has it pinned: the version that an optimiser tries, or the active one.

    ``coterie.prompt("coder", "Write {{language}}.", language="Rust")``. Where nothing is pinned, as in a program that runs
    without Coterie's store, it is the default. The text goes out as it is, also within a longer one: capture sees that the
    call uses this version, and puts nothing in its place.

    Args:
        role: Whose prompt.
        default: The template to take where none is pinned: the one that the program was written with.
        part: ``system``, ``examples`` or ``tool/<name of the tool>``.
        values: Placeholder → value.

    Raises:
        PromptError: nothing is pinned and there is no default; a placeholder has no value, or a value no placeholder.
    """
    check_part(part, of=f"coterie.prompt({role!r})")
    scope = current_scope()
    prompts = scope.prompts_of(role) if scope is not None else None
    pinned = prompts.of_part(part) if prompts is not None else None
    if scope is not None and pinned is not None:
        text = pinned.rendered(values)
        scope.handed_out.add(pinned.name)
        return text
    if default is None:
        raise PromptError(_nothing_pinned(role, part, scope))
    return render(default, values, of=f"the default {part} prompt of role {role!r}")


class GivenPrompts(dict[str, str]):
    """Role → system text: what a rollout function gets as ``prompts``. Notes which ones it takes.

    A text is as the model gets it, unless it has placeholders: then it is the template, for ``coterie.prompts.render``.
    """

    def __init__(self, scope: AttemptScope) -> None:
        systems = {one.role: one for one in scope.prompts if one.part == SYSTEM}
        super().__init__({role: one.text if one.placeholders else one.rendered({}) for role, one in systems.items()})
        self._systems = systems
        self._scope = scope

    def __getitem__(self, role: str) -> str:
        text = super().__getitem__(role)
        self._note(self._systems.get(role))
        return text

    def __iter__(self) -> Iterator[str]:
        # With an iterator of its own a mapping is copied item by item, through __getitem__.
        return super().__iter__()

    def get(self, role: str, default: Any = None) -> Any:
        """The text of a role, or the default."""
        return self[role] if role in self else default  # noqa: SIM401 - that is this method

    def items(self) -> Any:
        """Roles and texts."""
        self._note(*self._systems.values())
        return super().items()

    def values(self) -> Any:
        """The texts."""
        self._note(*self._systems.values())
        return super().values()

    def _note(self, *taken: PromptVersion | None) -> None:
        self._scope.handed_out.update(one.name for one in taken if one is not None)


def _nothing_pinned(role: str, part: str, scope: AttemptScope | None) -> str:
    asked = f"coterie.prompt({role!r}): no prompt of part {part!r} is pinned for this role"
    if scope is None:
        return (
            f"{asked}, because no attempt runs here. Run it inside `with coterie.record(store):` or a runner, or give "
            "a default."
        )
    pinned = ", ".join(f"{one.role!r} {one.part} ({one.name}@{one.version})" for one in scope.prompts) or "nothing"
    return f"{asked} in attempt {scope.attempt_id}; pinned is {pinned}. Publish and pin one, or give a default."
