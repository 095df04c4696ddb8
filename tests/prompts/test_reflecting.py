"""The reflecting model's client against a scripted model behind a real socket: what goes wrong is told apart, and nothing is asked
twice that was answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import BackendError, CoterieError
from coterie.testing import Fault, Reply, ScriptedModel
from coterie_trainers.prompts.budget import Ledger
from coterie_trainers.prompts.config import Budget, Price, Reflection
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.reflecting import FAILURES_IN_A_ROW, Reflector
from coterie_trainers.prompts.study import BudgetSpentError, ReflectionError


async def asked(
    folder: Path, model: ScriptedModel, ask: Callable[[Reflector], Any], budget: Budget | None = None, **settings: Any
) -> tuple[Any, Ledger]:
    """What ``ask`` gives, within a client and a journal of its own."""
    config = Reflection(base_url=model.base_url, model="strong", **{"retries": 0, "timeout_seconds": 10, **settings})
    ledger = Ledger(budget or Budget(rollouts=1))
    with Journal(folder / "journal.jsonl") as journal:
        async with Reflector(config, ledger, journal) as reflector:
            return await ask(reflector), ledger


def completion(**message: Any) -> Reply:
    choice = {
        "index": 0,
        "finish_reason": message.pop("finish_reason", "stop"),
        "message": {"role": "assistant", **message},
    }
    return Reply(body={"id": "x", "object": "chat.completion", "created": 1, "model": "strong", "choices": [choice]})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (completion(content=None, refusal="I will not."), "refused: I will not."),
        (completion(content="", finish_reason="content_filter"), "refused: its content filter"),
        (completion(content=None), "answered with no text"),
        (completion(content="", finish_reason="length"), "raise reflection.max_tokens"),
        (Reply(body={"nothing": "here"}), "something that is no chat completion"),
        (Fault.RUBBISH, "strong"),
        (Fault.EMPTY, "strong"),
        (Fault.CUT, "cannot be reached"),
        (Fault.HANG, r"did not answer within 0.5 s, tried 1 times. Raise reflection.timeout_seconds"),
        (503, "answered with status 503"),
        (429, "answered with status 429"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_told(answer: Any, said: str, tmp_path: Path) -> None:
    with ScriptedModel(lambda body: answer) as model, pytest.raises(ReflectionError, match=said):
        await asked(tmp_path, model, lambda one: one.ask("?", "proposal"), timeout_seconds=0.5)
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_model_that_cannot_be_asked_at_all_ends_the_run(status: int, tmp_path: Path) -> None:
    said = rf"refuses to be asked \({status}\)"
    with ScriptedModel(lambda body: status) as model, pytest.raises(BackendError, match=said):
        await asked(tmp_path, model, lambda one: one.ask("?", "proposal"))


async def test_a_model_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    async def again_and_again(reflector: Reflector) -> None:
        for _ in range(FAILURES_IN_A_ROW - 1):
            with pytest.raises(ReflectionError):
                await reflector.ask("?", "proposal")
        await reflector.ask("?", "proposal")

    said = rf"no usable answer {FAILURES_IN_A_ROW} times in a row.*status 500"
    with ScriptedModel(lambda body: 500) as model, pytest.raises(BackendError, match=said):
        await asked(tmp_path, model, again_and_again)


async def test_a_fault_of_the_line_is_tried_again(tmp_path: Path) -> None:
    answers: list[Any] = [503, "well"]
    with ScriptedModel(lambda body: answers.pop(0)) as model:
        text, ledger = await asked(tmp_path, model, lambda one: one.ask("?", "proposal"), retries=2)
    assert text == "well"
    assert ledger.reflections == 1


async def test_what_was_answered_is_not_asked_again_and_is_counted_again(tmp_path: Path) -> None:
    count = iter(range(100))

    async def thrice(reflector: Reflector) -> list[str]:
        # The same question twice at once: two answers, in the order in which they were asked for.
        answers = await asyncio.gather(reflector.ask("a", "p"), reflector.ask("a", "p"), reflector.ask("b", "p"))
        return list(answers)

    price = Price(input=1_000_000, output=0)
    with ScriptedModel(lambda body: f"{body['messages'][0]['content']} {next(count)}") as model:
        first, spent = await asked(tmp_path, model, thrice, price=price, concurrency=1)
        with (tmp_path / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"key": "reflection/cut of')  # a kill in the middle of a line
        again, spent_again = await asked(tmp_path, model, thrice, price=price, concurrency=1)
        assert len(model.requests) == 3
    assert first == again == ["a 0", "a 1", "b 2"]
    assert spent.reflecting == spent_again.reflecting
    assert spent.reflecting.calls == 3
    assert spent.reflecting.money == spent.reflecting.input_tokens > 0


async def test_a_journal_that_is_broken_in_its_middle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"key": "a"}\nrubbish\n{"key": "b"}\n')
    with pytest.raises(CoterieError, match=r"journal.jsonl, line 2 is no entry"), Journal(tmp_path / "journal.jsonl"):
        pass


async def test_no_more_at_once_and_no_faster_than_allowed(tmp_path: Path) -> None:
    now, most = 0, 0

    async def slowly(body: dict[str, Any]) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        return "well"

    async def many(reflector: Reflector) -> float:
        began = time.monotonic()
        await asyncio.gather(*(reflector.ask(str(number), "p") for number in range(6)))
        return time.monotonic() - began

    with ScriptedModel(slowly) as model:
        await asked(tmp_path, model, many, concurrency=2)
        assert most == 2
        (tmp_path / "journal.jsonl").unlink()
        seconds, _ = await asked(tmp_path, model, many, requests_per_minute=1200)
    assert seconds >= 5 * 60 / 1200


async def test_a_spent_budget_asks_nothing(tmp_path: Path) -> None:
    async def four(reflector: Reflector) -> None:
        for number in range(3):
            await reflector.ask(str(number), "p")
        with pytest.raises(BudgetSpentError, match="3 of 3 LLM calls are spent"):
            await reflector.ask("4", "p")

    with ScriptedModel(lambda body: "well") as model:
        await asked(tmp_path, model, four, Budget(calls=3))
        assert len(model.requests) == 3


async def test_the_teams_traces_are_of_the_team_alone_and_the_key_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import coterie

    monkeypatch.setenv("STRONG_KEY", "sk-secret")
    coterie.instrument()
    try:
        with ScriptedModel(lambda body: "well") as model:
            await asked(tmp_path, model, lambda one: one.ask("?", "p"), api_key="env:STRONG_KEY", temperature=None)
            request = model.requests[0]
    finally:
        coterie.uninstrument()
    assert request.headers["authorization"] == "Bearer sk-secret"
    assert not [name for name in request.headers if name.startswith("x-coterie")]
    assert "temperature" not in request.body
    assert "sk-secret" not in (tmp_path / "journal.jsonl").read_text()
    assert json.loads((tmp_path / "journal.jsonl").read_text())["answer"] == "well"
