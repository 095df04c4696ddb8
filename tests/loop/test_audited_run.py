"""A run of ``coterie train`` is audited: real loop, store, runner and sockets; only the model is scripted."""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from loop_parts import Told, small_config, write_project
from rich.console import Console
from scripted_backend import ScriptedBackend
from typer.testing import CliRunner

import coterie
from coterie.errors import BackendError, ConfigError
from coterie.store.base import Store
from coterie.testing import Reply, ScriptedModel
from coterie.vocabulary import Mode, RolloutState, Run
from coterie_trainers import commands
from coterie_trainers.audits import Audit, Method, audited_run
from coterie_trainers.audits.audited_run import audit_run
from coterie_trainers.loop import run as loop
from coterie_trainers.report import make_report

APP = """
import coterie
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)

def ask(role, *said):
    messages = [{"role": "system", "content": role}, *({"role": "user", "content": text} for text in said)]
    with coterie.agent(role):
        return client.chat.completions.create(model="m", messages=messages).choices[0].message.content

@coterie.rollout
def team(task):
    plan = ask("planner", str(task.input))
    return float(ask("coder", plan).startswith("good"))
"""


class Drawn:
    """Good and bad answers by turns of a seeded draw."""

    def __init__(self) -> None:
        self._random = random.Random(3)

    def __call__(self, body: Any) -> str:
        return f"{self._random.choice(['good', 'bad'])} {self._random.randrange(1000)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_project(tmp_path, APP)


SETTINGS = small_config(training={"steps": 1}, evaluation={"every": 1, "test_samples": 2}, runner={"concurrency": 1})


async def trained(folder: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(loop, "make_backend", lambda *_: ScriptedBackend(model))
    training = loop.train("app.py:team", SETTINGS, folder=folder, work=folder / "work", progress=Told())
    return await asyncio.wait_for(training, 60)


async def audited(folder: Path, backend: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Audit:
    monkeypatch.setattr(audited_run, "make_backend", lambda *_: backend)
    settings: dict[str, Any] = {"method": Method.MASK, "sample": 6, "replays": 1, **options}
    audit = audit_run("app.py:team", SETTINGS, folder=folder, work=folder / "work", progress=Told(), **settings)
    return await asyncio.wait_for(audit, 60)


async def test_the_final_policies_are_served_and_the_report_shows_what_was_found(folder, monkeypatch):
    with ScriptedModel(Drawn()) as model:
        run = await trained(folder, model, monkeypatch)
        backend = ScriptedBackend(model)
        for method in Method:
            found = await audited(folder, backend, monkeypatch, method=method, run_id=run.id)
            assert (found.rollouts, found.problems, found.answered_by) == (6, {}, "step 1")
            assert found.findings[0].role == "coder"
    assert backend.loaded == ["step-000001"] * 2
    assert backend.closed == 2
    console = Console(width=140, record=True, file=io.StringIO())
    store = str(folder / "work" / "store.db")
    figures = await make_report(store, run.id, json_file=folder / "figures.json", console=console)
    told = console.export_text()
    assert "What each role is worth (mask audit: 6 rollouts, 12 replays)" in told
    assert "Which turn decides (replay audit: 6 rollouts, 12 replays)" in told
    assert "coder 0" in (folder / "work" / "report.html").read_text()
    assert [each["method"] for each in json.loads((folder / "figures.json").read_text())["audits"]] == list(Method)
    # The audits' rollouts change no figure of success.
    assert figures.decodings["sampled"].after.rollouts == 6
    assert figures.costs.rollouts["audit"] == 2 * 12 + 6


async def test_models_that_still_run_are_called_as_the_rollouts_called_them(folder, monkeypatch):
    with ScriptedModel(Drawn()) as model:
        await trained(folder, model, monkeypatch)
        found = await audited(folder, None, monkeypatch, as_pinned=True, mode=Mode.TRAIN)
    assert found.answered_by == "as pinned"
    assert found.rollouts == 6


async def test_an_audit_whose_server_dies_goes_on_when_it_begins_again(folder, monkeypatch):
    class Dying(ScriptedBackend):
        async def load(self, step: Path) -> Any:
            raise BackendError("the server is gone")

    with ScriptedModel(Drawn()) as model:
        await trained(folder, model, monkeypatch)
        backend = Dying(model)
        with pytest.raises(BackendError, match="the server is gone"):
            await audited(folder, backend, monkeypatch)
        assert backend.closed == 1
        calls = len(model.requests)
        await audited(folder, ScriptedBackend(model), monkeypatch)
        first = len(model.requests) - calls
        await audited(folder, ScriptedBackend(model), monkeypatch)
        assert len(model.requests) - calls == first > 0


async def test_another_run_or_no_run_is_refused(folder, monkeypatch):
    with pytest.raises(ConfigError, match="holds no run"):
        await audited(folder, None, monkeypatch)
    with ScriptedModel(Drawn()) as model:
        await trained(folder, model, monkeypatch)
        with pytest.raises(ConfigError, match="not run-other"):
            await audited(folder, ScriptedBackend(model), monkeypatch, run_id="run-other")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "guess"], "mask and replay"),
        (["--mode", "production"], "--mode production"),
        (["--mask-text", "coder"], "ROLE=TEXT"),
        (["--json", "/nowhere/x.json"], "no folder"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(folder, monkeypatch, options, told):
    monkeypatch.setattr(commands, "_require_training_stack", lambda: None)
    (folder / "config.yaml").write_text(SETTINGS.model_dump_json())
    result = command("app.py:team", str(folder / "config.yaml"), *options)
    assert told in str(result.exception)


def test_the_command_shows_the_table_and_writes_it_for_machines(folder, monkeypatch):
    (folder / "config.yaml").write_text(SETTINGS.model_dump_json())
    with ScriptedModel(Drawn()) as model:
        asyncio.run(trained(folder, model, monkeypatch))
        arguments = ["--method", "replay", "--sample", "2", "--replays", "1", "--mask-text", "coder={}", "--as-pinned"]
        places = ["--out", str(folder / "work"), "--json", str(folder / "audit.json")]
        result = command("app.py:team", str(folder / "config.yaml"), *arguments, *places)
    assert result.exception is None, result.output
    assert "Which turn decides (replay audit: 2 rollouts, 4 replays)" in result.output
    found = json.loads((folder / "audit.json").read_text())
    assert {(one["role"], one["turn"]) for one in found["findings"]} == {("planner", 0), ("coder", 0)}


async def test_an_audit_that_is_killed_goes_on_and_keeps_what_was_done(folder, monkeypatch):
    (folder / "config.yaml").write_text(SETTINGS.model_dump_json())
    program = "import typer; from coterie_trainers.commands import audit; a = typer.Typer(); a.command()(audit); a()"
    arguments = ["app.py:team", "config.yaml", "--out", "work", "--method", "replay", "--replays", "2", "--as-pinned"]
    begin = partial(subprocess.Popen, [sys.executable, "-c", program, *arguments], cwd=folder, stdout=subprocess.PIPE)
    with ScriptedModel(Drawn()) as model:
        await trained(folder, model, monkeypatch)
        slow = model._answer
        model._answer = lambda body: Reply(slow(body), delay_seconds=0.1)
        killed = begin()
        try:
            before = await until_some_are_done(folder / "work" / "store.db", 10)
        finally:
            killed.kill()
            killed.communicate()
        model._answer = slow
        shown, _ = await asyncio.wait_for(asyncio.to_thread(begin().communicate), 60)
    assert "Which turn decides (replay audit: 6 rollouts, 24 replays)" in shown.decode()
    async with coterie.connect(folder / "work" / "store.db") as store:
        after = await done_attempts(store)
    assert before.items() <= after.items()
    assert len(after) == 6 + 24


async def until_some_are_done(place: Path, count: int) -> dict[str, str]:
    async with coterie.connect(place) as store:
        for _ in range(1200):
            done = await done_attempts(store)
            if len(done) >= count:
                return done
            await asyncio.sleep(0.05)
    raise AssertionError("not in time")


async def done_attempts(store: Store) -> dict[str, str]:
    """Replay → its attempt, of those that are done."""
    done = (await store.list_rollouts(mode=Mode.AUDIT, state=RolloutState.SUCCEEDED)).items
    attempts = await store.get_attempts([rollout.id for rollout in done])
    return {rollout_id: each[-1].id for rollout_id, each in attempts.items()}


def command(*arguments: str) -> Result:
    """``coterie audit`` with these arguments, in this process."""
    app = typer.Typer()
    app.command()(commands.audit)
    return CliRunner().invoke(app, arguments)
