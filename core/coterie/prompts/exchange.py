"""Prompts from a store to files and back: what is active is written, and what was changed by hand is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coterie.errors import PromptError
from coterie.prompts.files import (
    PromptFile,
    content_of,
    file_text,
    path_of,
    read_prompt_file,
    read_prompt_files,
)
from coterie.store.base import Store
from coterie.vocabulary import Resource, ResourceKind, ResourceStatus

OPTIMISER = "optimiser:"
"""How the authors of versions begin that no person wrote."""


class Outcome(StrEnum):
    """What became of one file, or of one prompt."""

    PUBLISHED = "published"
    """The file says something new: it is the active version now."""
    UNCHANGED = "unchanged"
    """The file and the active version say the same."""
    BEHIND = "behind"
    """Nobody changed the file, and an optimiser wrote a version since: that one stays."""
    WRITTEN = "written"
    """The file says by now what the active version says."""


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One prompt on its way."""

    name: str
    path: Path
    outcome: Outcome
    version: int
    """The active version afterwards; in a dry run the one that it would be."""


async def export_prompts(store: Store, folder: Path, *, force: bool = False) -> Sequence[Exchanged]:
    """Write the active version of each prompt to its file below a folder, which is made if need be.

    Prompts of which no version is active are left out; other files in the folder stay.

    Args:
        store: Where the prompts are.
        folder: Where the files are.
        force: Replace files also where they say what no version in the store says.

    Raises:
        PromptError: a file was changed by hand and would be replaced, or two names differ only in capitals. Nothing
            was written.
    """
    texts: dict[Path, str] = {}
    exchanged: list[Exchanged] = []
    problems: list[str] = []
    names: dict[str, str] = {}
    for resource in await store.list_resources(kind=ResourceKind.PROMPT, status=ResourceStatus.ACTIVE):
        path = folder / path_of(resource.name)
        other = names.setdefault(str(path).casefold(), resource.name)
        if other != resource.name:
            problems.append(f"{path}: prompts {other!r} and {resource.name!r} differ only in capitals. Rename one.")
        written = file_text(resource)
        if path.exists() and _bytes(path) == written.encode():
            exchanged.append(Exchanged(resource.name, path, Outcome.UNCHANGED, resource.version))
            continue
        if path.exists() and not force:
            problems += await _unknown_to(store, path, resource.name)
        texts[path] = written
        exchanged.append(Exchanged(resource.name, path, Outcome.WRITTEN, resource.version))
    if problems:
        raise PromptError("\n".join(problems))
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        except OSError as error:
            raise PromptError(f"{path}: it cannot be written: {error}.") from None
    return exchanged


async def import_prompts(
    store: Store, folder: Path, *, note: str = "", author: str = "user", dry_run: bool = False
) -> Sequence[Exchanged]:
    """Publish the prompts below a folder whose files say something else than the store; a repetition changes nothing.

    Everything is checked before anything is published. A new version's parent is the version that it replaces.

    Args:
        store: Where the prompts shall be.
        folder: Where the files are.
        note: Why they were changed.
        author: Who did it.
        dry_run: Tell what would be published, and publish nothing.

    Raises:
        PromptError: a file holds no prompt, or would undo what an optimiser wrote since the file was exported; names
            each of them. Nothing was published.
    """
    planned: list[tuple[PromptFile, Resource | None, Exchanged]] = []
    problems: list[str] = []
    for file in read_prompt_files(folder):
        versions = await store.list_resources(name=file.name)
        problem = _refused(file, versions)
        if problem is None:
            planned.append(_planned(file, versions, note, author))
        else:
            problems.append(problem)
    if problems:
        raise PromptError("\n".join([*problems, "Nothing was published."]))
    for _, resource, _ in planned:
        if resource is not None and not dry_run:
            await store.publish(resource)
    return [exchanged for _, _, exchanged in planned]


def _planned(
    file: PromptFile, versions: Sequence[Resource], note: str, author: str
) -> tuple[PromptFile, Resource | None, Exchanged]:
    active = _active(versions)
    if active is not None and content_of(active) == file.content:
        return file, None, Exchanged(file.name, file.path, Outcome.UNCHANGED, active.version)
    if active is not None and _is_behind(file, versions):
        return file, None, Exchanged(file.name, file.path, Outcome.BEHIND, active.version)
    replaced = active or (versions[-1] if versions else None)
    resource = Resource(
        file.name,
        ResourceKind.PROMPT,
        file.content,
        # Given, so that a version that somebody publishes meanwhile is not replaced unseen.
        version=len(versions) + 1,
        author=author,
        parent=None if replaced is None else replaced.version,
        note=note,
    )
    return file, resource, Exchanged(file.name, file.path, Outcome.PUBLISHED, resource.version)


def _refused(file: PromptFile, versions: Sequence[Resource]) -> str | None:
    """Why a file must not be published."""
    if versions and versions[0].kind is not ResourceKind.PROMPT:
        return f"{file.path}: {file.name!r} is a resource of kind {versions[0].kind} in the store. Rename the file."
    active = _active(versions)
    if active is None or content_of(active) == file.content or not _was_optimised_since(file, active):
        return None
    if _is_behind(file, versions):
        return None
    return (
        f"{file.path}: it was changed from version {file.version}, and {active.author} has written version "
        f"{active.version} since, which is active. See what changed (`coterie prompts diff "
        f"{file.name}@{file.version} {file.name}@{active.version}`), take over what is good, and set "
        f"`version: {active.version}` in the file."
    )


def _is_behind(file: PromptFile, versions: Sequence[Resource]) -> bool:
    active = _active(versions)
    if active is None or not _was_optimised_since(file, active):
        return False
    base = next((one for one in versions if one.version == file.version), None)
    return base is not None and content_of(base) == file.content


def _was_optimised_since(file: PromptFile, active: Resource) -> bool:
    """Between people git decides what comes after what; of what an optimiser wrote git knows nothing."""
    return file.version is not None and file.version < active.version and active.author.startswith(OPTIMISER)


def _active(versions: Sequence[Resource]) -> Resource | None:
    return next((one for one in versions if one.status is ResourceStatus.ACTIVE), None)


async def _unknown_to(store: Store, path: Path, name: str) -> list[str]:
    """What is wrong with replacing a file."""
    try:
        content: Mapping[str, object] | None = read_prompt_file(path, name).content
    except PromptError:
        content = None
    if content is not None and any(content_of(one) == content for one in await store.list_resources(name=name)):
        return []
    return [
        f"{path}: what it says is no version of prompt {name!r} in the store. Import it first, or export with --force "
        "to replace it."
    ]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path}: it cannot be read: {error}.") from None
