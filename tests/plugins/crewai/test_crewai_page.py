"""The program on docs/frameworks/crewai.md runs, and prints the tree that stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from crews_and_spans import tool_results

PAGE = Path(__file__).parents[3] / "docs" / "frameworks" / "crewai.md"
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
    printed = printed[printed.index("rollout ro-") :]
    assert without_ids_and_times(printed) == without_ids_and_times(shown)
    assert (tmp_path / "team.db").is_file()
