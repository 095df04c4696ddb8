"""The program on docs/how-to/plain-python.md runs, and prints the tree that stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import coterie
from coterie.runner import recorder
from coterie.testing import ScriptedModel

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "plain-python.md"
ANSWERS = {
    "You plan.": "Write a function, then have it reviewed.",
    "You write a Python function.": "def double(x): return 2 * x",
    "You say whether the code is good.": "It is good.",
}


def without_ids_and_times(text: str) -> str:
    text = text.partition("└─ missing")[0]
    text = re.sub(r"\b(ro|at|recorded)-[0-9a-f]+", r"\1-…", text)
    return re.sub(r"\d+\.\d\d s", "0.00 s", text).strip()


def test_the_page_shows_what_its_program_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(body: dict[str, Any]) -> str:
        return ANSWERS[body["messages"][0]["content"]]

    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program = "\n".join(text for language, text in blocks if language == "python")
    (shown,) = [text for language, text in blocks if language == "text"]
    with ScriptedModel(answer) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        monkeypatch.chdir(tmp_path)
        exec(compile(program, "team.py", "exec"), {"__name__": "team"})
    recorder.close_recorders()
    coterie.uninstrument()
    assert without_ids_and_times(capsys.readouterr().out) == without_ids_and_times(shown)
    assert (tmp_path / "team.db").is_file()
