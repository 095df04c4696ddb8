"""The program on docs/frameworks/langchain.md runs, and prints the tree that stands there."""

from __future__ import annotations

from typing import Any

from reading_spans import last_text, system_text


def answer(body: dict[str, Any]) -> Any:
    has_result = body["messages"][-1]["role"] == "tool"
    match system_text(body), has_result:
        case "You plan, and let the coder write.", False:
            return {"tool_calls": [{"name": "ask_coder", "arguments": {"task": last_text(body)}}]}
        case "You write a Python function and test it.", False:
            return {"tool_calls": [{"name": "run_tests", "arguments": {"code": "def double(x): return 2 * x"}}]}
        case "You write a Python function and test it.", True:
            return "def double(x): return 2 * x"
        case "You say whether the code is good.", _:
            return "It is good."
    return "Here it is: def double(x): return 2 * x"


def test_the_page_shows_what_its_program_prints(serve, recording, play_page, tmp_path):
    printed, shown = play_page("frameworks/langchain.md", serve(answer))
    assert printed == shown
    assert (tmp_path / "team.db").is_file()
