"""The quickstart example loads, runs, is attributed and judged right."""

from __future__ import annotations

from pathlib import Path

from reading_spans import outline, scope_of, system_text

from coterie.apps import load_app
from coterie.rollouts import Given
from coterie.scope import attempt_scope
from coterie.testing import ListSink
from coterie.vocabulary import Mode, Task

EXAMPLE = Path(__file__).parents[3] / "examples" / "quickstart"


async def test_quickstart_runs_and_is_attributed(serve, recording, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    team = load_app("app.py:team", folder=EXAMPLE)
    server, sink = serve(lambda body: "2+3 is 5" if "step by step" in system_text(body) else "5"), ListSink()

    async def reward(reference: str) -> float:
        task = Task(id="1", input="What is 2+3?", reference=reference)
        with attempt_scope(scope_of(server, sink)):
            return await team.play(Given(task=task, prompts={}, endpoint=None, endpoints={}, mode=Mode.TRAIN))

    assert await reward("5") == 1.0
    assert outline(sink.spans) == [
        "invoke_workflow LangGraph",
        "> invoke_agent solver",
        "> > chat solver",
        "> invoke_agent checker",
        "> > chat checker",
    ]
    assert await reward("6") == 0.0
