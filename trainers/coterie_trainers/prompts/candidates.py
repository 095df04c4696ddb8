"""Candidates as the store has them: each text is a version of its prompt, with who wrote it, from what, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from coterie.errors import ConfigError, PromptError
from coterie.prompts import EXAMPLES, check_template
from coterie.store.base import Store
from coterie.vocabulary import JSON, Resource, ResourceKind, ResourceStatus
from coterie_trainers.prompts.study import Candidate, TunedPrompt


class Versions:
    """The versions of the tuned prompts; a text that exists already is not published again."""

    def __init__(self, store: Store, prompts: Mapping[str, TunedPrompt]) -> None:
        self.store = store
        self.prompts = prompts
        self._known: dict[str, dict[str, int]] = {name: {} for name in prompts}
        """Prompt name → text → version."""
        self._of_candidate: dict[str, Mapping[str, str]] = {}
        """Candidate id → its texts, of those that were published."""
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read what the store has.

        Raises:
            ConfigError: a name belongs to a resource of another kind.
        """
        for name, prompt in self.prompts.items():
            for resource in await self.store.list_resources(name=name):
                if resource.kind is not ResourceKind.PROMPT:
                    raise ConfigError(
                        f"prompts.{name}: the store has a resource of this name that is no prompt, but {resource.kind}. "
                        "Choose another name."
                    )
                if content_of(prompt, str(resource.content.get("text"))) == with_defaults(resource.content):
                    self._known[name][str(resource.content["text"])] = resource.version

    def version_of(self, name: str, text: str) -> int | None:
        """The version of a prompt that has this text; None if none has."""
        return self._known[name].get(text)

    def versions_of(self, candidate: Candidate) -> Mapping[str, int]:
        """Prompt name → version, of a candidate that was published."""
        return {name: self._known[name][text] for name, text in candidate.texts.items()}

    async def publish(
        self,
        candidate: Candidate,
        *,
        only: str | None = None,
        note: str = "",
        status: ResourceStatus = ResourceStatus.CANDIDATE,
    ) -> Mapping[str, int]:
        """Publish the texts of a candidate that are new; gives what a rollout of it is pinned to.

        Args:
            candidate: The candidate.
            only: Of this prompt alone.
            note: Why, where the candidate does not say it.
            status: What the new versions are for.

        Raises:
            ConfigError: it lacks a prompt, or has one that is not tuned.
            PromptError: a text has other placeholders than its prompt.
        """
        self.check(candidate)
        names = [name for name in candidate.texts if only in (None, name)]
        async with self._lock:
            for name in names:
                text = candidate.texts[name]
                if text not in self._known[name]:
                    published = await self.store.publish(
                        Resource(
                            name,
                            ResourceKind.PROMPT,
                            content_of(self.prompts[name], text),
                            author=candidate.author,
                            parent=self._parent(candidate, name),
                            note=candidate.why.get(name, note),
                            status=status,
                        )
                    )
                    self._known[name][text] = published.version
            self._of_candidate[candidate.id] = dict(candidate.texts)
        return {name: self._known[name][candidate.texts[name]] for name in names}

    def check(self, candidate: Candidate) -> None:
        """Refuse a candidate that cannot be played.

        Raises:
            ConfigError: it lacks a prompt, or has one that is not tuned.
            PromptError: a text other than of examples is empty, or has other placeholders than its prompt.
        """
        if set(candidate.texts) != set(self.prompts):
            apart = ", ".join(sorted(set(candidate.texts) ^ set(self.prompts)))
            raise ConfigError(
                f"A candidate of {candidate.author} must hold a text for each tuned prompt and no other; these differ: {apart}."
            )
        for name, text in candidate.texts.items():
            of = f"The text of {candidate.author} for prompt {name!r}"
            if not text.strip() and self.prompts[name].part != EXAMPLES:
                raise PromptError(f"{of} is empty.")
            check_template(text, self.prompts[name].placeholders, of=of)

    def _parent(self, candidate: Candidate, name: str) -> int | None:
        texts = (self._of_candidate.get(parent, {}).get(name) for parent in candidate.parents)
        return next((version for text in texts if text is not None and (version := self.version_of(name, text))), None)


def content_of(prompt: TunedPrompt, text: str) -> dict[str, JSON]:
    """The content of a prompt resource."""
    return {"text": text, "role": prompt.role, "part": prompt.part, "placeholders": list(prompt.placeholders)}


def with_defaults(content: Mapping[str, JSON]) -> dict[str, JSON]:
    """A prompt resource's content with what it may leave out."""
    return {"part": "system", "placeholders": [], **content}
