"""Published prompts as an attempt holds them: each version, those of one role, and those that a call really used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coterie import conventions as names
from coterie.errors import PromptError
from coterie.prompts.parts import EXAMPLES, SYSTEM, check_part, tool_of
from coterie.prompts.template import check_template, placeholders, render
from coterie.vocabulary import Resource


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """One version of a prompt."""

    name: str
    """The resource's name."""
    version: int
    text: str
    """The template."""
    role: str
    part: str = SYSTEM
    placeholders: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"prompt {self.name!r} version {self.version}"

    @property
    def plain(self) -> str | None:
        """The text as the model gets it; None if only the program can say it, because there are placeholders to fill."""
        return None if self.placeholders else self.rendered({})

    def rendered(self, values: Mapping[str, object]) -> str:
        """The text with its placeholders filled.

        Raises:
            PromptError: a placeholder has no value, or a value no placeholder.
        """
        return render(self.text, values, of=self.label)


@dataclass(frozen=True, slots=True)
class RolePrompts:
    """The prompts of one role."""

    system: PromptVersion | None = None
    examples: PromptVersion | None = None
    tools: Mapping[str, PromptVersion] = field(default_factory=dict)
    """Tool → the prompt that describes it."""

    def of_part(self, part: str) -> PromptVersion | None:
        """The prompt of a part."""
        tool = tool_of(part)
        if tool is not None:
            return self.tools.get(tool)
        return self.system if part == SYSTEM else self.examples


@dataclass(frozen=True, slots=True)
class UsedPrompts:
    """The prompts that were in the request of one call."""

    system: PromptVersion | None = None
    parts: Mapping[str, PromptVersion] = field(default_factory=dict)
    """Every other part → its prompt."""

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.parts)

    def attributes(self) -> dict[str, str | int]:
        """What the call's span says of them."""
        attributes: dict[str, str | int] = {}
        if self.system is not None:
            attributes = {names.PROMPT_NAME: self.system.name, names.PROMPT_VERSION: self.system.version}
        if self.parts:
            parts = {part: [prompt.name, prompt.version] for part, prompt in sorted(self.parts.items())}
            attributes[names.PROMPT_PARTS] = json.dumps(parts, ensure_ascii=False)
        return attributes


def parts_in(attribute: object) -> dict[str, tuple[str, int]]:
    """What a span's ``coterie.prompt.parts`` says: part → name and version. What is no such text says nothing."""
    try:
        told = json.loads(attribute) if isinstance(attribute, str) else {}
    except ValueError:
        return {}
    pairs = told.items() if isinstance(told, Mapping) else ()
    return {part: (str(pair[0]), pair[1]) for part, pair in pairs if _is_pair(pair)}


def prompt_in(resource: Resource) -> PromptVersion:
    """The prompt that a resource holds: ``{"text": …, "role": …, "part": "system", "placeholders": [names]}``.

    Without ``role`` it is for the role of its own name, without ``part`` a system prompt, without ``placeholders`` those
    are its placeholders that stand in the text.

    Raises:
        PromptError: its content is no prompt.
    """
    which = f"Resource {resource.name!r} version {resource.version}"
    content = resource.content
    text, role = content.get("text"), content.get("role") or resource.name
    if not isinstance(text, str) or not isinstance(role, str):
        raise PromptError(
            f"{which} is no prompt: its content must be {{'text': …, 'role': …}}, both texts, and may have "
            "'part' and 'placeholders'."
        )
    part = check_part(content.get("part") or SYSTEM, of=which)
    declared = content.get("placeholders")
    if declared is None:
        declared = placeholders(text)
    elif not isinstance(declared, Sequence) or isinstance(declared, str):
        raise PromptError(f"{which}: 'placeholders' must be a list of names, not {declared!r}.")
    declared = tuple(map(str, declared))
    check_template(text, declared, of=which)
    return PromptVersion(resource.name, resource.version, text, role, part, declared)


def by_role(prompts: Iterable[PromptVersion]) -> dict[str, RolePrompts]:
    """Role → its prompts. Of several for one place the last counts."""
    found: dict[str, dict[str, PromptVersion]] = {}
    for prompt in prompts:
        found.setdefault(prompt.role, {})[prompt.part] = prompt
    return {
        role: RolePrompts(
            parts.get(SYSTEM),
            parts.get(EXAMPLES),
            {tool: prompt for part, prompt in parts.items() if (tool := tool_of(part)) is not None},
        )
        for role, parts in found.items()
    }


def rivals(prompts: Iterable[PromptVersion]) -> list[Sequence[PromptVersion]]:
    """The prompts that are for one place, where there is more than one: each set of them, in their order."""
    places: dict[tuple[str, str], list[PromptVersion]] = {}
    for prompt in prompts:
        places.setdefault((prompt.role, prompt.part), []).append(prompt)
    return [found for found in places.values() if len(found) > 1]


def told_rivals(found: Sequence[PromptVersion]) -> str:
    """Rivals in words."""
    first = found[0]
    those = " and ".join(prompt.label for prompt in found)
    return f"{those} are both for the part {first.part!r} of role {first.role!r}"


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
