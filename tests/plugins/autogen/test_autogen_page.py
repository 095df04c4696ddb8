"""The program on docs/frameworks/autogen.md runs, and prints the tree that stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

from autogen_spans import system_text

PAGE = Path(__file__).parents[3] / "docs" / "frameworks" / "autogen.md"


def answer(body: dict[str, Any]) -> Any:
    results = sum(message["role"] == "tool" for message in body["messages"])
    match system_text(body), results:
        case "You let the coder write, then hand over to the reviewer.", 0:
            return {"tool_calls": [{"name": "coder", "arguments": {"task": "Double a number."}}]}
        case "You let the coder write, then hand over to the reviewer.", _:
            return {"tool_calls": [{"name": "transfer_to_reviewer", "arguments": {}}]}
        case "You write a Python function and test it.", 0:
            return {"tool_calls": [{"name": "run_tests", "arguments": {"code": "def double(x): return 2 * x"}}]}
        case "You write a Python function and test it.", _:
            return "def double(x): return 2 * x"
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
    assert without_ids_and_times(capsys.readouterr().out) == without_ids_and_times(shown)
    assert (tmp_path / "team.db").is_file()
