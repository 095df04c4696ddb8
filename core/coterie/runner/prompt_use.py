"""Says which pinned prompts no call of an attempt used: such a prompt was not tried, whatever the attempt's score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coterie import conventions as c
from coterie.prompts.parts import EXAMPLES, SYSTEM, tool_of
from coterie.prompts.versions import PromptVersion, parts_in
from coterie.vocabulary import Span


@dataclass(slots=True)
class PromptUse:
    """What the LLM calls among the spans of an attempt say of prompts."""

    roles: set[str] = field(default_factory=set)
    """The roles that called a model."""
    used: set[tuple[str, int]] = field(default_factory=set)
    """Name and version of the prompts that were in a call."""

    def add(self, span: Span) -> None:
        """Take a span, if it is an LLM call."""
        attributes = span.attributes
        if attributes.get(c.OPERATION) != c.CHAT:
            return
        self.roles.add(str(attributes.get(c.ROLE)))
        version = attributes.get(c.PROMPT_VERSION)
        if isinstance(version, int):
            self.used.add((str(attributes.get(c.PROMPT_NAME)), version))
        self.used.update(parts_in(attributes.get(c.PROMPT_PARTS)).values())

    def unused(self, prompts: Iterable[PromptVersion]) -> Sequence[PromptVersion]:
        """Those of the prompts that were in no call."""
        return [prompt for prompt in prompts if (prompt.name, prompt.version) not in self.used]


def why_unused(use: PromptUse, prompt: PromptVersion) -> str:
    """That a prompt was in none of an attempt's calls, the likely cause, and what to do."""
    return f"no call used {prompt.label}, the {prompt.part} prompt of role {prompt.role!r}. {_cause(use, prompt)}"


def _cause(use: PromptUse, prompt: PromptVersion) -> str:
    if not use.roles:
        return (
            "No LLM call was seen at all: does the model client use an SDK that Coterie does not hook, or is capture "
            "off (coterie.instrument())?"
        )
    if prompt.role not in use.roles:
        return (
            f"No call of this role was seen; the roles that called are {', '.join(sorted(use.roles))}. Was it not "
            "needed here, or is its agent called otherwise now? Then name the role in the prompt, or map the agent's "
            "name to the role (agents)."
        )
    if prompt.placeholders:
        named = ", ".join(f"{{{{{name}}}}}" for name in prompt.placeholders)
        return (
            f"It has the placeholders {named}, which only the program can fill, and no call had its text: ask for it "
            f"where the text is made, with coterie.prompt({prompt.role!r}, …)."
        )
    tool = tool_of(prompt.part)
    if tool is not None:
        return f"No call of this role offered a tool {tool!r} to the model in its request."
    what = "system message" if prompt.part in (SYSTEM, EXAMPLES) else "place"
    return (
        f"The role's calls were seen, but not on the wire or in an API without a {what}, so it could not be put in: "
        f"ask for it where the text is made, with coterie.prompt({prompt.role!r}, …)."
    )
