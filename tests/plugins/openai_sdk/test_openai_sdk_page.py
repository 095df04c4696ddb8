"""The program on docs/frameworks/openai-agents.md runs, and prints the tree that stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sdk_teams import call, results

PAGE = Path(__file__).parents[3] / "docs" / "frameworks" / "openai-agents.md"
CODE = "def double(x): return 2 * x"


def answer(body: dict[str, Any]) -> Any:
    match body["instructions"], bool(results(body)):
        case "You let the coder write, and hand over to the reviewer.", False:
            return call("ask_coder", input="Double a number.")
        case "You let the coder write, and hand over to the reviewer.", True:
            return call("transfer_to_reviewer")
        case "You write a Python function and test it.", False:
            return call("run_tests", code=CODE)
        case "You write a Python function and test it.", True:
            return CODE
    return "It is good."


def without_ids_and_times(text: str) -> str:
    text = text.partition("└─ missing")[0]
    text = re.sub(r"\b(ro|at|recorded)-[0-9a-f]+", r"\1-…", text)
    return re.sub(r"\d+\.\d\d s", "0.00 s", text).strip()


def test_the_page_shows_what_its_program_prints(serve, recording, monkeypatch, tmp_path, capsys):
    server = serve(answer)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program = "\n".join(text for language, text in blocks if language == "python")
    (shown,) = [text for language, text in blocks if language == "text"]

    exec(compile(program, "team.py", "exec"), {"__name__": "team"})
    printed = capsys.readouterr().out
    print(printed)
    assert without_ids_and_times(printed) == without_ids_and_times(shown)
    assert (tmp_path / "team.db").is_file()
