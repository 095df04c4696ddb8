"""Training on the credit of audits: real loop, store, runner and sockets; only the model is scripted."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told, small_config, write_project
from pydantic import ValidationError
from scripted_backend import ScriptedBackend

import coterie
from coterie.interfaces import Sample
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode
from coterie_trainers import advantages
from coterie_trainers.config import TrainConfig
from coterie_trainers.loop import run as loop

APP = """
import itertools
import coterie
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
hours = itertools.count()

def ask(role, *said):
    messages = [{"role": "system", "content": role}, *({"role": "user", "content": text} for text in said)]
    with coterie.agent(role):
        return client.chat.completions.create(model="m", messages=messages).choices[0].message.content

@coterie.rollout
def team(task):
    code = ask("coder", str(task.input))
    ask("taster", code)
    return float(code.startswith("good"))

@coterie.rollout
def asks_the_time(task):
    return float(ask("coder", f"it is {next(hours)} o'clock").startswith("good"))
"""


def settings(audit: dict[str, Any] | None, advantage: Any) -> TrainConfig:
    credit = {"advantage": advantage, **({"audit": audit} if audit else {})}
    training = {"steps": 1, "rollouts_per_task": 4}
    return small_config(training=training, evaluation={"every": 1}, runner={"concurrency": 1}, credit=credit)


async def trained(
    folder: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, app: str = "team"
) -> tuple[ScriptedBackend, dict[str, Any], Told]:
    draw = random.Random(5)
    told = Told()
    write_project(folder, APP)
    with ScriptedModel(lambda body: f"{draw.choice(['good', 'bad'])} {draw.randrange(1000)}") as model:
        backend = ScriptedBackend(model)
        monkeypatch.setattr(loop, "make_backend", lambda *_: backend)
        training = loop.train(f"app.py:{app}", config, folder=folder, work=folder / "work", progress=told)
        run = await asyncio.wait_for(training, 90)
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        (row,) = await store.get_metrics(run.id, stage="train")
    return backend, dict(row.values), told


async def test_by_mask_a_role_is_paid_for_what_the_team_would_lose_without_it(tmp_path, monkeypatch):
    config = settings(
        {"method": "mask", "share": 1.0}, {"coder": "counterfactual_mask", "taster": "counterfactual_mask"}
    )
    backend, figures, _ = await trained(tmp_path, config, monkeypatch)
    (rows,) = backend.updates
    # Without the coder the team always loses: it is paid its reward, and lost rollouts teach nothing. Without the taster
    # nothing changes.
    assert {row.role for row in rows} == {"coder"}
    assert {advantage for row in rows for advantage in row.advantages if advantage} == {1.0}
    assert len(rows) == round(figures["success"] * 12)
    assert (figures["audited"], figures["audit_replays"]) == (12, 24)


async def test_by_replay_a_turn_is_paid_for_its_message_and_a_share_is_enough(tmp_path, monkeypatch):
    config = settings({"method": "replay", "share": 0.5, "replays": 2}, "counterfactual_replay")
    backend, figures, _ = await trained(tmp_path, config, monkeypatch)
    (rows,) = backend.updates
    assert (figures["audited"], figures["audit_replays"]) == (6, 6 * 2 * 2)
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        audits = (await store.list_rollouts(mode=Mode.AUDIT)).items
        originals = {rollout.metadata["coterie.replay"]["rollout_id"] for rollout in audits}
    assert len(originals) == 6
    assert not any(row.rollout_id.startswith("ro-audit") for row in rows)
    # The taster decides nothing: only where it was compared with other rollouts does it get anything.
    assert not originals & {row.rollout_id for row in rows if row.role == "taster"}
    assert originals & {row.rollout_id for row in rows if row.role == "coder"}


async def test_a_program_that_does_not_repeat_trains_on_comparisons_and_says_so(tmp_path, monkeypatch):
    config = settings({"method": "mask", "share": 1.0}, "counterfactual_mask")
    backend, figures, told = await trained(tmp_path, config, monkeypatch, app="asks_the_time")
    assert backend.updates
    assert "audited" not in figures
    assert any("do not repeat" in warning and "'loo'" in warning for warning in told.warnings)


@pytest.mark.parametrize(
    ("audit", "advantage", "told"),
    [
        (None, "counterfactual_mask", "'audit' is not set"),
        ({"method": "mask"}, "counterfactual_replay", "'audit' has method 'mask'"),
        ({"method": "mask"}, "role", "none of the advantages"),
        ({"method": "mask", "share": 0.0}, "counterfactual_mask", "share"),
    ],
)
def test_audits_that_nobody_uses_or_that_are_missing_are_refused(audit, advantage, told):
    with pytest.raises(ValidationError, match=told):
        settings(audit, advantage)


def test_turns_without_an_audit_are_compared_with_other_rollouts():
    def sample(rollout: str, reward: float, audited: float | None) -> Sample:
        return Sample("t", rollout, "coder", "coder", 0, reward, audited=audited)

    samples = [sample("a", 1.0, 0.25), sample("b", 0.0, None), sample("c", 1.0, None)]
    for name in ("counterfactual_mask", "counterfactual_replay"):
        assert advantages.estimate(samples, name).tolist() == [0.25, -1.0, 0.5]
