"""The program on docs/how-to/plain-python.md runs, and prints the tree that stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docs_pages import PlayPage

import coterie
from coterie.testing import ScriptedModel

ANSWERS = {
    "You plan.": "Write a function, then have it reviewed.",
    "You write a Python function.": "def double(x): return 2 * x",
    "You say whether the code is good.": "It is good.",
}


def test_the_page_shows_what_its_program_prints(play_page: PlayPage, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        return ANSWERS[body["messages"][0]["content"]]

    with ScriptedModel(answer) as model:
        printed, shown = play_page("how-to/plain-python.md", model)
    coterie.uninstrument()
    assert printed == shown
    assert (tmp_path / "team.db").is_file()
