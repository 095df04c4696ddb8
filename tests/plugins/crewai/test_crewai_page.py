"""The program on docs/frameworks/crewai.md runs, and prints the tree that stands there."""

from __future__ import annotations

from typing import Any

from crews import tool_results

CODE = "def double(x): return 2 * x"


def answer(body: dict[str, Any]) -> Any:
    said, has_result = str(body["messages"]), bool(tool_results(body))
    if "You plan, and let" in said:
        delegated = {"task": "Double a number.", "context": "Python", "coworker": "Coder"}
        if not has_result:
            return {"tool_calls": [{"name": "delegate_work_to_coworker", "arguments": delegated}]}
        return f"Here it is: {CODE}"
    if "You write a Python" in said:
        return CODE if has_result else {"tool_calls": [{"name": "run_tests", "arguments": {"code": CODE}}]}
    return "It is good."


def test_the_page_shows_what_its_program_prints(serve, recording, play_page, tmp_path):
    printed, shown = play_page("frameworks/crewai.md", serve(answer))
    printed = printed[printed.index("rollout ro-") :]
    assert printed == shown
    assert (tmp_path / "team.db").is_file()
