"""A fixture that runs the program on a page of the docs, for comparison with the tree that stands there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coterie.runner import recorder
from coterie.testing import ScriptedModel

DOCS = Path(__file__).parents[2] / "docs"

PlayPage = Callable[[str, ScriptedModel], tuple[str, str]]


@pytest.fixture
def play_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[PlayPage]:
    """Run a page's program in ``tmp_path``; gives what it printed and what the page shows, without ids and times."""

    def play(page: str, server: ScriptedModel) -> tuple[str, str]:
        blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
        program = "\n".join(text for language, text in blocks if language == "python")
        (shown,) = [text for language, text in blocks if language == "text"]
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        monkeypatch.chdir(tmp_path)
        exec(compile(program, "team.py", "exec"), {"__name__": "team"})
        return _without_ids_and_times(capsys.readouterr().out), _without_ids_and_times(shown)

    yield play
    # Recorders are kept by the path of their store, and the pages share one relative path.
    recorder.close_recorders()


def _without_ids_and_times(text: str) -> str:
    text = text.partition("└─ missing")[0]
    text = re.sub(r"\b(ro|at|recorded)-[0-9a-f]+", r"\1-…", text)
    return re.sub(r"\d+\.\d\d s", "0.00 s", text).strip()
