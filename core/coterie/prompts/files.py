"""Prompts as plain files, so that they can live in git: one Markdown file a prompt, below one folder.

::

    ---
    role: coder
    part: system
    placeholders: [language]
    version: 3
    ---
    Write {{language}}. Answer with JSON such as {"code": …}.

The path is the name: ``coder/tool/search.md`` is the prompt ``coder/tool/search``. The front matter may be left out, and
each of its keys: the role is then the first word of the name, the part is ``tool/<tool>`` or ``examples`` if the name
goes on so, there are no placeholders, and the text was made from no version in particular. The text is what follows, to
the last character but one line end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import yaml

from coterie.errors import PromptError
from coterie.prompts.parts import EXAMPLES, SYSTEM, check_part, tool_of
from coterie.prompts.template import placeholders
from coterie.vocabulary import JSON, Resource

SUFFIX = ".md"
KEYS = ("role", "part", "placeholders", "version")
"""What a front matter may hold."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What a file says."""

    path: Path
    name: str
    """The resource's."""
    text: str
    role: str
    part: str
    placeholders: tuple[str, ...]
    version: int | None
    """The version in the store that the text was made from."""

    @property
    def content(self) -> Mapping[str, JSON]:
        """The content of a resource that says the same."""
        return {"text": self.text, "role": self.role, "part": self.part, "placeholders": list(self.placeholders)}


def read_prompt_files(folder: Path) -> Sequence[PromptFile]:
    """All prompts below a folder, by name. ``README.md`` and what begins with a dot are no prompts.

    Raises:
        PromptError: some files hold none; names each of them with its line.
    """
    if not folder.is_dir():
        raise PromptError(f"{folder}: there is no such folder.")
    found: list[PromptFile] = []
    problems: list[str] = []
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        place = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in place.parts) and not _is_readme(place.stem):
            try:
                found.append(read_prompt_file(path, name_of(PurePosixPath(place.as_posix()))))
            except PromptError as problem:
                problems.append(str(problem))
    if problems:
        raise PromptError("\n".join(problems))
    return sorted(found, key=lambda file: file.name)


def read_prompt_file(path: Path, name: str) -> PromptFile:
    """The prompt of this name in a file.

    Raises:
        PromptError: says in which line what is wrong; several problems are told at once.
    """
    try:
        # As it is: Python would change line ends that belong to the text.
        written = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: it cannot be read: {error}.") from None
    front, text, text_line = _split(path, written)
    return _Reader(path, name, front, text, text_line).read()


def file_text(resource: Resource, *, version: bool = True) -> str:
    """What a file with this prompt holds; without ``version`` only what is the same in every store.

    Raises:
        PromptError: the resource is no prompt, or its text is no Unicode.
    """
    content = content_of(resource)
    front: dict[str, JSON] = {"role": content["role"], "part": content["part"]}
    if content["placeholders"]:
        front["placeholders"] = content["placeholders"]
    if version:
        front["version"] = resource.version
    written = "".join(
        # Each key in a line of its own, and a list in that line.
        yaml.safe_dump(
            {key: value},
            allow_unicode=True,
            default_flow_style=None if isinstance(value, list) else False,
            width=10**6,
        )
        for key, value in front.items()
    )
    text = f"---\n{written}---\n{content['text']}\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"Prompt {resource.name!r} version {resource.version} holds {text[error.start]!a}, half of a surrogate pair, "
            "which no text file can hold. Publish it without."
        ) from None
    return text


def content_of(resource: Resource) -> Mapping[str, JSON]:
    """A prompt's content with all its keys.

    Raises:
        PromptError: it has no text.
    """
    content = resource.content
    text = content.get("text")
    if not isinstance(text, str):
        raise PromptError(
            f"Resource {resource.name!r} version {resource.version} is no prompt: its content must be "
            "{'text': …, 'role': …}."
        )
    return {
        "text": text,
        "role": content.get("role") or resource.name,
        "part": content.get("part") or SYSTEM,
        "placeholders": list(content.get("placeholders") or ()),
    }


def path_of(name: str) -> PurePosixPath:
    """Where the file of a prompt lies below its folder. What a path cannot hold is written as in addresses (``%2F``)."""
    *folders, last = [_escaped(part) for part in name.split("/")]
    return PurePosixPath(*folders, last + SUFFIX)


def name_of(path: PurePosixPath) -> str:
    """The name of the prompt in a file, whose path is relative to its folder."""
    return "/".join(map(_unescaped, path.with_suffix("").parts))


_PLAIN = "-_.~ "
"""Characters, beside letters and digits, that a file may have in its name everywhere."""
_NOTHING = "%"
"""Stands for an empty part of a name; a percent sign itself is written ``%25``."""


def _escaped(part: str) -> str:
    if not part:
        return _NOTHING
    kept = [character.isalnum() or character in _PLAIN for character in part]
    # What begins with a dot or is a README would be passed over, and some systems cut dots and spaces at the end off.
    kept[0] = kept[0] and part[0] not in ". " and not _is_readme(part)
    kept[-1] = kept[-1] and part[-1] not in ". "
    return "".join(
        character if keep else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
        for character, keep in zip(part, kept, strict=True)
    )


def _unescaped(part: str) -> str:
    return "" if part == _NOTHING else unquote(part, errors="surrogatepass")


def _is_readme(stem: str) -> bool:
    return stem.casefold() == "readme"


_FENCE = "---"


def _split(path: Path, written: str) -> tuple[str, str, int]:
    """The front matter, the text, and the line in which the text begins."""
    front, text, lines = "", written, 1
    if written.startswith((f"{_FENCE}\n", f"{_FENCE}\r\n")):
        # Git makes such line ends on some systems, all over the file; ours are plain.
        if written.startswith(f"{_FENCE}\r\n"):
            written = written.replace("\r\n", "\n")
        front, fence, text = written[len(_FENCE) :].partition(f"\n{_FENCE}\n")
        if not fence:
            raise PromptError(f"{path}, line 1: the front matter has no end. Put a line with {_FENCE} below it.")
        lines = front.count("\n") + 3
    return front, text.removesuffix("\n"), lines


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path, name: str, front: str, text: str, text_line: int) -> None:
        self.path = path
        self.name = name
        self.text = text
        self.text_line = text_line
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        """Key of the front matter → its line in the file."""
        self.problems: list[str] = []
        self._read_front(front)

    def read(self) -> PromptFile:
        """The prompt, if nothing is wrong with it."""
        role, named, version = self._role(), self._placeholders(), self._version()
        part = self._part()
        if not self.text.strip():
            self._problem(self.text_line, "there is no text below the front matter")
        self._check_placeholders(named)
        if self.problems:
            raise PromptError("\n".join(self.problems))
        return PromptFile(self.path, self.name, self.text, role, part, named, version)

    def _read_front(self, front: str) -> None:
        loader = yaml.SafeLoader(front)
        try:
            node = loader.get_single_node()
            if node is None:
                return
            if not isinstance(node, yaml.MappingNode):
                raise PromptError(f"{self.path}, line 2: the front matter must be lines like `role: coder`.")
            for key_node, value_node in node.value:
                key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if key not in KEYS:
                    self._problem(line, f"the front matter has the unknown key {key!r}; there are {', '.join(KEYS)}")
                elif key in self.lines:
                    self._problem(line, f"{key!r} is given twice, first in line {self.lines[key]}")
                else:
                    self.lines[key] = line
                    self.values[key] = loader.construct_object(value_node, deep=True)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise PromptError(
                f"{self.path}, line {line}: the front matter is no YAML: {error.problem or error.context}."
            ) from None
        except yaml.YAMLError as error:
            raise PromptError(f"{self.path}: the front matter is no YAML: {error}.") from None
        finally:
            loader.dispose()

    def _role(self) -> str:
        role = self.values.get("role", self.name.split("/")[0])
        if not isinstance(role, str) or not role:
            self._problem(self.lines.get("role", 1), f"the role must be a text, not {role!r}")
        return str(role)

    def _part(self) -> str:
        part = self.values.get("part", self._part_by_name())
        try:
            return check_part(part)
        except PromptError:
            allowed = "'system', 'examples' and 'tool/<name of the tool>'"
            self._problem(self.lines.get("part", 1), f"there is no part {part!r}; there are {allowed}")
            return SYSTEM

    def _part_by_name(self) -> str:
        rest = self.name.partition("/")[2]
        return rest if rest == EXAMPLES or tool_of(rest) else SYSTEM

    def _placeholders(self) -> tuple[str, ...]:
        named = self.values.get("placeholders", [])
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            self._problem(self.lines["placeholders"], "placeholders must be a list of names, such as [language]")
            return ()
        return tuple(named)

    def _version(self) -> int | None:
        version = self.values.get("version")
        if version is None or (isinstance(version, int) and not isinstance(version, bool) and version >= 1):
            return version
        self._problem(self.lines["version"], f"the version must be a number from 1, not {version!r}")
        return None

    def _check_placeholders(self, named: Sequence[str]) -> None:
        there = placeholders(self.text)
        for name in named:
            if name not in there:
                self._problem(
                    self.lines.get("placeholders", 1),
                    f"the text lacks {{{{{name}}}}}. Put it into the text, or take it out of `placeholders`",
                )
        for name in there:
            if name not in named:
                self._problem(
                    self._line_of(name),
                    f"nobody fills {{{{{name}}}}}. Name it in `placeholders`, or write \\{{{{{name}}}}} for plain text",
                )

    def _line_of(self, name: str) -> int:
        """The first line of the text that makes this name a placeholder of it."""
        lines = self.text.splitlines()
        return self.text_line + next((at for at, line in enumerate(lines) if name in placeholders(line)), 0)

    def _problem(self, line: int, text: str) -> None:
        self.problems.append(f"{self.path}, line {line}: {text}.")
