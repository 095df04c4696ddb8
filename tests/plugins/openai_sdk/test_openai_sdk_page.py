"""The program on docs/frameworks/openai-agents.md runs, and prints the tree that stands there."""

from __future__ import annotations

from typing import Any

from sdk_teams import call, results

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


def test_the_page_shows_what_its_program_prints(serve, recording, play_page, tmp_path):
    printed, shown = play_page("frameworks/openai-agents.md", serve(answer))
    assert printed == shown
    assert (tmp_path / "team.db").is_file()
