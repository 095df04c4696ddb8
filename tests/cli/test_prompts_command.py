"""``coterie prompts``, as a person types it who keeps prompts in git."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coterie import connect
from coterie.cli import main
from coterie.store.base import Store
from coterie.vocabulary import Resource, ResourceKind, ResourceStatus, Run

Typed = Callable[..., tuple[int, str, str]]

CODER = Path("prompts/coder.md")
SEARCH = Path("prompts/coder/tool/search.md")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs ``coterie prompts`` in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTERIE_STORE", "team.db")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["prompts", *arguments])
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, said.out, said.err

    return run


def on_store(work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def done() -> Any:
        async with connect("team.db") as store:
            return await work(store)

    return asyncio.run(done())


def publish(text: str, name: str = "coder", **fields: Any) -> Resource:
    content = {"text": text, "role": "coder"}
    found: Resource = on_store(lambda store: store.publish(Resource(name, ResourceKind.PROMPT, content, **fields)))
    return found


def optimised(text: str, **fields: Any) -> Resource:
    return publish(text, author="optimiser:gepa", note="It forgot the tests.", parent=1, **fields)


@pytest.fixture
def exported(typed: Typed) -> Typed:
    """A prompt that was exported at its first version."""
    publish("Write Rust.")
    assert typed("export", "prompts")[:2] == (0, f"{CODER}: written, coder@1\n")
    return typed


def active() -> dict[str, tuple[int, str]]:
    listed = on_store(lambda store: store.list_resources(status=ResourceStatus.ACTIVE))
    return {one.name: (one.version, one.content["text"]) for one in listed}


def test_a_folder_of_texts_becomes_prompts(typed: Typed) -> None:
    SEARCH.parent.mkdir(parents=True)
    CODER.write_text("Write Rust.\n")
    SEARCH.write_text("---\nplaceholders: [corpus]\n---\nSearches {{corpus}}.\n")
    code, out, _ = typed("import", "prompts", "--dry-run")
    assert (code, "there is no file team.db" in _) == (2, True)
    code, out, _ = typed("import", "prompts", "--note", "first")
    assert code == 0
    assert out.splitlines() == [f"{CODER}: published, coder@1", f"{SEARCH}: published, coder/tool/search@1"]
    found = on_store(lambda store: store.get_resource("coder/tool/search"))
    assert found.content == {
        "text": "Searches {{corpus}}.",
        "role": "coder",
        "part": "tool/search",
        "placeholders": ["corpus"],
    }
    assert (found.author, found.note, found.parent) == ("user", "first", None)
    assert typed("import", "prompts")[1] == "2 unchanged\n"


def test_only_what_changed_is_published(exported: Typed) -> None:
    publish("Search.", "coder/tool/search")
    exported("export", "prompts")
    CODER.write_text(CODER.read_text().replace("Rust", "Go"))
    code, out, _ = exported("import", "prompts", "--dry-run")
    assert (code, out) == (0, f"{CODER}: would be published, coder@2\n1 unchanged\n")
    assert active()["coder"] == (1, "Write Rust.")
    code, out, _ = exported("import", "prompts", "--json")
    assert [(one["name"], one["outcome"], one["version"]) for one in json.loads(out)] == [
        ("coder", "published", 2),
        ("coder/tool/search", "unchanged", 1),
    ]
    assert active() == {"coder": (2, "Write Go."), "coder/tool/search": (1, "Search.")}
    assert on_store(lambda store: store.get_resource("coder")).parent == 1
    # The file still names version 1, as in a checkout that nobody exports to.
    CODER.write_text(CODER.read_text().replace("Go", "Rust"))
    assert exported("import", "prompts")[1].startswith(f"{CODER}: published, coder@3")


def test_a_bad_template_is_refused_and_nothing_is_published(exported: Typed) -> None:
    CODER.write_text("---\nrole: coder\n---\nWrite {{language}}.\n")
    SEARCH.parent.mkdir(parents=True)
    SEARCH.write_text("Search.")
    code, _, err = exported("import", "prompts")
    assert code == 2
    assert f"{CODER}, line 4: nobody fills {{{{language}}}}" in err
    assert active() == {"coder": (1, "Write Rust.")}


def test_what_an_optimiser_wrote_is_not_undone_by_an_older_file(exported: Typed) -> None:
    optimised("Write Rust with tests.")
    code, out, _ = exported("import", "prompts")
    assert (code, out) == (0, f"{CODER}: behind; coder@2 in the store is newer and stays. Export it.\n")
    CODER.write_text(CODER.read_text().replace("Rust", "Go"))
    code, _, err = exported("import", "prompts")
    assert code == 2
    assert "changed from version 1, and optimiser:gepa has written version 2 since" in err
    assert active()["coder"] == (2, "Write Rust with tests.")
    CODER.write_text(CODER.read_text().replace("version: 1", "version: 2"))
    assert exported("import", "prompts")[1] == f"{CODER}: published, coder@3\n"


def test_export_never_replaces_what_nobody_has(exported: Typed) -> None:
    optimised("Write Rust with tests.")
    mine = CODER.read_text().replace("Rust", "Go")
    CODER.write_text(mine)
    code, _, err = exported("export", "prompts")
    assert (code, "no version of prompt 'coder' in the store" in err) == (2, True)
    assert CODER.read_text() == mine
    assert exported("export", "prompts", "--force")[0] == 0
    assert CODER.read_text() == "---\nrole: coder\npart: system\nversion: 2\n---\nWrite Rust with tests.\n"
    assert exported("export", "prompts")[1] == "1 unchanged\n"
    publish("Third.")
    assert exported("export", "prompts")[1] == f"{CODER}: written, coder@3\n"


def test_two_names_that_one_file_would_hold_are_refused(exported: Typed) -> None:
    publish("x", "Coder")
    code, _, err = exported("export", "other")
    assert (code, "differ only in capitals" in err, Path("other").exists()) == (2, True, False)


def test_listing_and_showing(typed: Typed) -> None:
    assert typed("list")[0] == 2  # no store yet
    publish("Write Rust.")
    optimised("Write Rust with tests.", status=ResourceStatus.CANDIDATE, scores={"run-1": {"val": 0.75, "test": 1 / 3}})
    publish("x", "judge", status=ResourceStatus.CANDIDATE)
    code, out, _ = typed("list")
    coder, judge = out.splitlines()
    assert code == 0
    assert coder.split()[:2] == ["coder", "@1"]
    assert coder.endswith("2 versions, 1 candidate")
    assert "none active" in judge
    newest, why, oldest = typed("list", "coder")[1].splitlines()
    assert newest.split()[:4] == ["@2", "candidate", "from", "@1"]
    assert newest.endswith("run-1 (val 0.75, test 0.3333)")
    assert why.strip() == "It forgot the tests."
    assert oldest.split()[:2] == ["@1", "active"]
    shown = typed("show", "coder@2")[1]
    assert "coder@2, candidate" in shown
    assert "It forgot the tests." in shown
    assert shown.endswith("\n\nWrite Rust with tests.\n")
    assert json.loads(typed("show", "coder", "--json")[1])["version"] == 1
    assert [one["candidates"] for one in json.loads(typed("list", "--json")[1])] == [1, 1]


def test_comparing(typed: Typed) -> None:
    publish("Write Rust.\nBe brief.")
    optimised("Write Rust with tests.\nBe brief.", status=ResourceStatus.CANDIDATE)
    lines = typed("diff", "coder@1", "coder@2")[1].splitlines()
    assert lines[:2] == ["--- coder@1", "+++ coder@2"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-Write Rust.", "+Write Rust with tests."]
    assert typed("diff", "coder@2")[1].splitlines() == lines
    assert json.loads(typed("diff", "coder@2", "--json")[1])["diff"] == lines
    assert typed("diff", "coder", "coder@1")[1] == "coder@1 and coder@1 say the same.\n"
    assert "made from no other version" in typed("diff", "coder@1")[2]


def test_putting_to_use_and_out_of_it(typed: Typed) -> None:
    publish("a")
    on_store(lambda store: store.save_run(Run("run-1", "optimize", "n", {})))
    optimised("b", status=ResourceStatus.CANDIDATE, scores={"run-1": {"val": 0.5}, "seen": 3})
    code, out, _ = typed("activate", "coder@2")
    assert (code, out) == (
        0,
        "coder@2 is active now, in place of coder@1; written down as a decision of run run-1\n",
    )
    assert active() == {"coder": (2, "b")}
    assert typed("activate", "coder@2")[1] == "coder@2 is active already\n"
    assert typed("activate", "coder@1", "--run", "run-1")[1].startswith("coder@1 is active now, in place of coder@2;")
    assert typed("retire", "coder")[1] == "coder@1 is retired; no version is active now\n"
    assert active() == {}
    assert json.loads(typed("activate", "coder@1", "--json")[1])["status"] == "active"
    decisions = on_store(lambda store: store.get_decisions("run-1"))
    assert [(one.kind, one.subject, one.evidence["in_place_of"]) for one in decisions] == [
        ("promoted", "prompt coder@2", 1),
        ("rolled_back", "prompt coder@1", 2),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "codr"], "no prompt 'codr' in this store; there are 'coder'"),
        (["show", "model"], "no prompt 'model'"),
        (["show", "coder@9"], "prompt 'coder' has no version 9; there are 1 (retired), 2 (retired)"),
        (
            ["show", "coder"],
            "prompt 'coder' has no active version; there are 1 (retired), 2 (retired). Name one as coder@2",
        ),
        (["list", "codr"], "no prompt 'codr'"),
        (["activate", "coder"], "say which version, as in coder@3"),
        (["activate", "coder@2", "--run", "run-9"], "no run 'run-9'"),
        (["import", "gone"], "gone: there is no such folder"),
        (["import", "prompts"], "'model' is a resource of kind endpoint in the store. Rename the file."),
        (["export", "team.db"], "team.db"),
    ],
)
def test_errors_say_what_is_wrong(typed: Typed, arguments: list[str], says: str) -> None:
    publish("a")
    publish("b", status=ResourceStatus.RETIRED)
    on_store(lambda store: store.mark("coder", 1, ResourceStatus.RETIRED))
    on_store(lambda store: store.publish(Resource("model", ResourceKind.ENDPOINT, {})))
    if arguments[0] == "export":
        publish("c")
    CODER.parent.mkdir()
    CODER.with_name("model.md").write_text("x")
    code, _, err = typed(*arguments)
    assert (code, says in err) == (2, True), err
    assert "Traceback" not in err
