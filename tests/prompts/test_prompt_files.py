"""Prompts as files: what is written reads back to the last character, and what is wrong is told with its line."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coterie.errors import PromptError
from coterie.prompts import escape
from coterie.prompts.files import file_text, name_of, path_of, read_prompt_file, read_prompt_files
from coterie.vocabulary import Resource, ResourceKind


def prompt(text: str, name: str = "coder", version: int = 1, **content: Any) -> Resource:
    return Resource(name, ResourceKind.PROMPT, {"text": text, "role": "coder", **content}, version)


def written(folder: Path, text: str, name: str = "coder.md") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    text=TEXTS,
    role=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    part=st.sampled_from(["system", "examples", "tool/a b"]),
)
@example(text="---\nrole: x\n---\n\r\n", role="yes", part="system")
@example(text='{"a": {{{1}}}} "\'ü\u2028 \\', role="1", part="system")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
def test_every_prompt_survives(tmp_path: Path, text: str, role: str, part: str) -> None:
    text = "{{filled}}" + escape(text)
    resource = prompt(text, role=role, part=part, placeholders=["filled"], version=7)
    read = read_prompt_file(written(tmp_path, file_text(resource)), "coder")
    assert (dict(read.content), read.version) == (
        {"text": text, "role": role, "part": part, "placeholders": ["filled"]},
        7,
    )


@given(st.text(st.characters() | st.sampled_from("/. %~"), min_size=1, max_size=12))
@example("README")
@example("coder/ReadMe/")
@example("../../etc/passwd")
@example("/absolute")
@example("a//b/./..")
@example(".hidden")
@example("trailing. ")
@example("v1.2")
@example("C:\\x")
@example("%41")
@example("\ud800")
def test_every_name_has_a_path_below_the_folder_and_back(name: str) -> None:
    path = path_of(name)
    assert name_of(path) == name
    assert not path.is_absolute()
    assert not {"..", "."} & set(path.parts)
    assert not any(part.startswith(".") for part in path.parts)
    assert path.name.casefold() != "readme.md"


def test_usual_names_are_paths_as_they_are() -> None:
    for name in ("coder", "coder/tool/search", "prüfer", "v1.2", "senior coder"):
        assert path_of(name) == PurePosixPath(f"{name}.md")


def test_what_is_left_out_follows_from_the_name(tmp_path: Path) -> None:
    written(tmp_path, "Write.\n", "coder.md")
    written(tmp_path, "---\n---\nSearch with {braces}.", "coder/tool/search.md")
    written(tmp_path, "Q: 1\nA: 2\n", "coder/examples.md")
    written(tmp_path, "not a prompt: {{x}}", "README.md")
    written(tmp_path, "not a prompt: {{x}}", ".git/x.md")
    written(tmp_path, "not a prompt: {{x}}", "notes.txt")
    found = [(file.name, file.role, file.part, file.text) for file in read_prompt_files(tmp_path)]
    assert found == [
        ("coder", "coder", "system", "Write."),
        ("coder/examples", "coder", "examples", "Q: 1\nA: 2"),
        ("coder/tool/search", "coder", "tool/search", "Search with {braces}."),
    ]


def test_line_ends_that_git_made_are_plain_again(tmp_path: Path) -> None:
    text = file_text(prompt("a\nb\n", placeholders=[]))
    assert read_prompt_file(written(tmp_path, text.replace("\n", "\r\n")), "coder").text == "a\nb\n"
    assert read_prompt_file(written(tmp_path, "\ufeff" + text), "coder").text == "a\nb\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\nrole: coder\nversoin: 3\n---\nx", "line 3: the front matter has the unknown key 'versoin'"),
        ("---\nrole: coder\nrole: x\n---\nx", "line 3: 'role' is given twice, first in line 2"),
        ("---\nrole: coder\n\npart: tools\n---\nx", "line 4: there is no part 'tools'; there are 'system'"),
        ("---\nrole: 5\n---\nx", "line 2: the role must be a text, not 5"),
        ("---\nversion: last\n---\nx", "line 2: the version must be a number from 1, not 'last'"),
        ("---\nplaceholders: task\n---\nx", "line 2: placeholders must be a list of names"),
        ("---\nrole: coder\nplaceholders: [task]\n---\nDo it.", "line 3: the text lacks {{task}}"),
        ("---\nrole: coder\n---\nDo\n\n{{task}} of {{task}}.", "line 6: nobody fills {{task}}"),
        ("first\n{{task}}", "line 2: nobody fills {{task}}. Name it in `placeholders`, or write \\{{task}}"),
        ("---\nrole: [a\n---\nx", "line 2: the front matter is no YAML"),
        ("---\n- coder\n---\nx", "line 2: the front matter must be lines like"),
        ("---\nrole: coder\n", "line 1: the front matter has no end"),
        ("---\nrole: coder\n---\n \n", "line 4: there is no text"),
        ("---\nrole: !!python/object:os.system x\n---\nx", "line 2: the front matter is no YAML: could not determine"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PromptError) as told:
        read_prompt_file(path, "coder")
    assert f"{path}, {says}" in str(told.value)


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    written(tmp_path, "---\npart: x\nrole: 1\n---\n{{a}}", "one.md")
    (tmp_path / "two.md").write_bytes(b"\xff\xfe")
    written(tmp_path, "fine", "three.md")
    with pytest.raises(PromptError) as told:
        read_prompt_files(tmp_path)
    assert len(str(told.value).splitlines()) == 4
    assert "two.md: it cannot be read" in str(told.value)


def test_what_no_file_can_hold_is_refused() -> None:
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        file_text(prompt("\ud800"))
    with pytest.raises(PromptError, match="is no prompt"):
        file_text(Resource("coder", ResourceKind.PROMPT, {}))
