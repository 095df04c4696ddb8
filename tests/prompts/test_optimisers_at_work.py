"""``apo`` and ``bootstrap`` in a whole run: the planted team and the reflecting model are scripted, behind a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told
from planted_team import LEARNED, SEED, answer, team_config, write_team

import coterie
from coterie.testing import ScriptedModel
from coterie.vocabulary import ResourceStatus, Run
from coterie_trainers.prompts import best, optimise


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


async def tune(folder: Path, model: ScriptedModel, **settings: Any) -> Run:
    write_team(folder, model.base_url, tasks=8)
    config = team_config(model.base_url, selection={"test_samples": 1, "gate": "none"}, **settings)
    return await optimise("app.py:team", config, folder=folder, work=folder / "work", progress=Told())


async def test_apo_finds_the_lessons_of_both_roles(tmp_path: Path, model: ScriptedModel) -> None:
    settings = {"beam": 2, "branch": 2, "rounds": 2, "gradient_batch": 8, "validation_batch": 8}
    run = await tune(tmp_path, model, optimiser={"apo": settings})
    assert run.summary["taken"] is True
    assert best(tmp_path / "work") == LEARNED
    asked = [str(request.body["messages"]) for request in model.requests if request.body["model"] == "reflector"]
    assert asked
    assert not [question for question in asked if " val " in question or " test " in question]


async def test_bootstrap_writes_what_the_team_did_well_into_the_examples_of_a_role(
    tmp_path: Path, model: ScriptedModel
) -> None:
    prompts = {**{role: {"text": text} for role, text in SEED.items()}, "coder/examples": {}}
    run = await tune(tmp_path, model, optimiser={"bootstrap": {"sets": 3}}, prompts=prompts)
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        versions = await store.list_resources(name="coder/examples")
        (first,) = [each for each in versions if each.version == 1]
        assert (first.content["text"], first.status) == ("", ResourceStatus.ACTIVE)
        written = [each for each in versions if each.author == "optimiser:bootstrap"]
        assert written
        for each in written:
            assert "Input:\nPlan: plain: a plan\nOutput:\nANSWER OK" in each.content["text"]
            assert "WRONG SIGN" not in each.content["text"]
    sent = [str(request.body["messages"][0]["content"]) for request in model.requests]
    assert any(text.startswith(SEED["coder"]) and "ANSWER OK" in text for text in sent)
    # It helps nobody here, so the shorter prompt stays.
    assert run.summary["taken"] is False
