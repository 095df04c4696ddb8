"""A tuning run from its opening to its finish: a real store, a real runner, and a team whose scripted model answers behind a real
socket by what the prompts say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from loop_parts import Told
from planted_team import LEARNED, SEED, answer, team_config, write_team

import coterie
from coterie.testing import ScriptedModel
from coterie.vocabulary import ResourceStatus, RunState
from coterie_trainers.prompts import best, optimise
from coterie_trainers.prompts.study import Candidate, Study


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


async def knows(study: Study) -> Sequence[Candidate]:
    """An optimiser that knows the answer."""
    return [Candidate(LEARNED, parents=(study.seed.id,), author="optimiser:knows", why={"coder": "signs were wrong"})]


async def test_the_winner_becomes_active_and_is_given_in_one_line(tmp_path: Path, model: ScriptedModel) -> None:
    folder = write_team(tmp_path, model.base_url)
    run = await optimise(
        "app.py:team",
        team_config(model.base_url),
        folder=folder,
        work=folder / "work",
        progress=Told(),
        optimiser=knows,
    )
    assert run.state is RunState.SUCCEEDED
    assert run.summary["taken"] is True
    assert run.summary["test_before"]["value"] == pytest.approx(0.25)
    assert run.summary["test_after"]["value"] == 1.0
    assert best(folder / "work") == LEARNED
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        for role, text in LEARNED.items():
            active = await store.get_resource(role)
            assert active.content["text"] == text
            assert active.author == "optimiser:knows"
            assert active.parent == 1
            assert active.scores[run.id]["test"] == 1.0
            first = await store.get_resource(role, 1)
            assert (first.content["text"], first.status) == (SEED[role], ResourceStatus.RETIRED)
        decisions = await store.get_decisions(run.id)
        assert [decision.kind for decision in decisions] == ["promoted"]
