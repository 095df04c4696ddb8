"""The program on docs/frameworks/autogen.md runs, and prints the tree that stands there."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("autogen_agentchat")
pytest.importorskip("autogen_ext")

from reading_spans import system_text


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


def test_the_page_shows_what_its_program_prints(serve, recording, play_page, tmp_path):
    printed, shown = play_page("frameworks/autogen.md", serve(answer))
    assert printed == shown
    assert (tmp_path / "team.db").is_file()
