"""A runner plays attempts again: what is frozen, what is masked, what goes to the model, and how a departure is told."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from replayed_team import DrawnAnswers, ask, play, published

import coterie
from coterie.apps import load_app
from coterie.assembly import load_episodes
from coterie.episodes import Episode
from coterie.errors import ConfigError
from coterie.replays import METADATA, Recorded, RecordedCall, Replay, Replaying, replay_of
from coterie.runner import Runner
from coterie.runner.embedded import Isolation
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Attempt, Mode, Rollout, RolloutState, Task

pytestmark = pytest.mark.usefixtures("captured")


@pytest.fixture
def answers() -> DrawnAnswers:
    return DrawnAnswers()


@pytest.fixture
def model(answers: DrawnAnswers) -> Iterator[ScriptedModel]:
    with ScriptedModel(answers) as served:
        yield served


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with coterie.connect(tmp_path / "store.db") as opened:
        await opened.add_tasks([Task("t1", "six times seven")])
        yield opened


async def played(store: Store, function: Any, rollout: Rollout, **options: Any) -> tuple[Rollout, Attempt]:
    async with Runner(store, coterie.rollout(function), **options) as runner:
        await store.enqueue([rollout])
        (ended,) = await store.wait([rollout.id], timeout_seconds=60)
        await runner.drain()
    return ended, (await store.get_attempts([rollout.id]))[rollout.id][-1]


async def recorded_episode(store: Store, function: Any, model: ScriptedModel) -> Episode:
    ended, _ = await played(store, function, Rollout("t1", id="ro-then", resources=await published(store, model)))
    assert ended.state is RolloutState.SUCCEEDED, ended.reason
    (episode,) = await load_episodes(store, ["ro-then"])
    return episode


async def replayed(store: Store, function: Any, episode: Episode, frozen: int, **more: Any) -> tuple[Episode, Attempt]:
    replay = Replay(episode.rollout_id, episode.attempt_id, frozen, **more)
    (then,) = await store.get_rollouts([episode.rollout_id])
    rollout = Rollout("t1", mode=Mode.AUDIT, resources=then.resources, metadata=replay.as_metadata())
    ended, attempt = await played(store, function, rollout)
    assert ended.state is RolloutState.SUCCEEDED, ended.reason
    (again,) = await load_episodes(store, [ended.id])
    return again, attempt


def answered(episode: Episode) -> dict[str, str | None]:
    return {turn.role: turn.answered_by for turn in episode.turns}


async def test_all_calls_frozen_gives_the_same_episode_without_a_model(store, model, answers):
    then = await recorded_episode(store, play, model)
    asked = answers.asked.total()
    again, attempt = await replayed(store, play, then, frozen=3)
    assert answers.asked.total() == asked == 3
    assert [turn.text for turn in again.turns] == [turn.text for turn in then.turns]
    assert [reward.value for reward in again.rewards] == [reward.value for reward in then.rewards]
    assert set(answered(again).values()) == {"recording"}
    assert not any(turn.trainable for turn in again.turns)
    assert not attempt.warnings


async def test_the_call_behind_the_frozen_ones_is_sampled_anew_and_the_rest_follows(store, model, answers):
    then = await recorded_episode(store, play, model)
    answers.asked.clear()
    again, attempt = await replayed(store, play, then, frozen=1)
    assert answered(again) == {"planner": "recording", "coder": None, "reviewer": None}
    assert answers.asked == {"coder": 1, "reviewer": 1}
    assert again.turns[0].text == then.turns[0].text
    assert again.turns[1].text != then.turns[1].text
    assert not attempt.warnings


async def test_a_question_that_the_change_leaves_as_it_was_gets_the_answer_of_then(store, model, answers):
    async def apart(task: Task) -> float:
        code = await ask("coder", str(task.input))
        await ask("taster", str(task.input))
        return float(code.startswith("good"))

    then = await recorded_episode(store, apart, model)
    again, _ = await replayed(store, apart, then, frozen=0)
    assert answered(again) == {"coder": None, "taster": "recording"}
    assert again.turns[1].text == then.turns[1].text


async def test_a_masked_role_says_the_text_and_nobody_before_it_is_asked(store, model, answers):
    then = await recorded_episode(store, play, model)
    answers.asked.clear()
    again, attempt = await replayed(store, play, then, frozen=1, masked_role="coder", mask_text="nothing")
    assert answered(again) == {"planner": "recording", "coder": "mask", "reviewer": None}
    assert again.turns[1].text == "nothing"
    assert answers.asked == {"reviewer": 1}
    assert not again.turns[1].trainable
    assert [reward.value for reward in again.rewards] == [0.0]
    assert not attempt.warnings


async def test_the_program_sees_the_mode_of_the_rollout_that_it_replays(store, model):
    seen = []

    async def team(task: Task, mode: Mode) -> float:
        seen.append(mode)
        await ask("coder", "x")
        return 1.0

    then = await recorded_episode(store, team, model)
    await replayed(store, team, then, frozen=1)
    assert seen == [Mode.TRAIN, Mode.TRAIN]


def clock(counter: Iterator[int]) -> Callable[..., Any]:
    async def asks_the_time(task: Task) -> float:
        await ask("planner", "plan")
        await ask("coder", f"it is {next(counter)} o'clock")
        return 1.0

    return asks_the_time


def shy(counter: Iterator[int]) -> Callable[..., Any]:
    async def leaves_one_out(task: Task) -> float:
        await ask("planner", "plan")
        if next(counter) == 0:
            await ask("coder", "code")
        return 1.0

    return leaves_one_out


def eager(counter: Iterator[int]) -> Callable[..., Any]:
    async def makes_one_more(task: Task) -> float:
        for _ in range(next(counter) + 1):
            await ask("planner", "plan")
        return 1.0

    return makes_one_more


def silent(counter: Iterator[int]) -> Callable[..., Any]:
    async def makes_no_call(task: Task) -> float:
        if next(counter) == 0:
            await ask("planner", "plan")
        return 1.0

    return makes_no_call


@pytest.mark.parametrize(
    ("team", "replay", "why"),
    [
        (clock, {"frozen": 2}, "call 1 (coder 0) asks something else: message 1 had"),
        (clock, {"frozen": 1}, "call 1 (coder 0) was not made again"),
        (clock, {"frozen": 1, "masked_role": "coder"}, "call 1 (coder 0) was not made again"),
        (shy, {"frozen": 2}, "call 1 (coder 0) was not made again"),
        (eager, {"frozen": 1}, "planner made a call 1 that it did not make then"),
        (silent, {"frozen": 0}, "call 0 (planner 0) was not made again"),
    ],
)
async def test_a_program_that_departs_from_the_recording_is_found(store, model, team, replay, why, caplog):
    function = team(iter(range(9)))
    then = await recorded_episode(store, function, model)
    _, attempt = await replayed(store, function, then, **replay)
    (warning,) = attempt.warnings
    assert f"diverged: {why}" in warning
    assert then.attempt_id in warning
    assert why in caplog.text


async def test_a_replay_of_what_cannot_be_given_again_is_refused_with_the_cause(store, model):
    async def fails_once(task: Task) -> float:
        with contextlib.suppress(openai.APIError):
            await ask("planner", "HTTP 500, please")
        await ask("coder", "code")
        return 1.0

    model._answer = lambda body: 500 if "500" in str(body) else "fine"
    then = await recorded_episode(store, fails_once, model)
    for replay, why in [
        (Replay("ro-then", then.attempt_id, 2), r"call 0 \(planner 0\) failed then"),
        (Replay("ro-then", then.attempt_id, 9), "it made 2"),
        (Replay("ro-then", then.attempt_id, 0, masked_role="poet"), "The roles that did: planner, coder"),
        (Replay("ro-none", then.attempt_id, 0), "ro-none"),
        (Replay("ro-then", "at-none", 0), "no span"),
    ]:
        rollout = Rollout("t1", mode=Mode.AUDIT, metadata=replay.as_metadata(), max_attempts=3)
        ended, attempt = await played(store, fails_once, rollout)
        assert ended.state is RolloutState.DEAD
        assert attempt.number == 1
        assert re.search(why, attempt.error or ""), attempt.error


@pytest.mark.parametrize(
    "metadata",
    [
        {METADATA: 3},
        {METADATA: {"rollout_id": "ro", "attempt_id": "at"}},
        {METADATA: {"rollout_id": "ro", "attempt_id": "at", "frozen": "all"}},
        {METADATA: {"rollout_id": "ro", "attempt_id": "at", "frozen": -1}},
        {METADATA: {"rollout_id": "ro", "attempt_id": "at", "frozen": 1, "until": 3}},
    ],
)
def test_metadata_that_make_no_sense_are_refused(metadata):
    with pytest.raises(ConfigError, match=METADATA):
        replay_of(Rollout("t1", metadata=metadata))


def test_metadata_come_back_as_they_went_in():
    replay = Replay("ro", "at", 2, masked_role="coder", mask_text="…")
    assert replay_of(Rollout("t1", metadata=replay.as_metadata())) == replay
    assert replay_of(Rollout("t1")) is None


def test_parallel_agents_of_one_role_are_told_apart_by_what_they_ask():
    def asks(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    calls = [RecordedCall("worker", index, asks(text), None) for index, text in enumerate(["left", "right"])]
    replaying = Replaying(Recorded(Replay("ro", "at", 1), calls, Mode.TRAIN))
    # The other one comes first this time, and is the one that is to be sampled anew.
    assert replaying.answer_to("worker", 0, asks("right")) is None
    replaying.answer_to("worker", 1, asks("left"))
    assert replaying.end() is None


async def test_an_attempt_is_replayed_in_a_worker_process(store, model, tmp_path, answers):
    (tmp_path / "app.py").write_text(
        "import sys; sys.path.insert(0, "
        f"{str(Path(__file__).parent)!r})\nimport coterie\nimport replayed_team\nteam = coterie.rollout(replayed_team.play)\n"
    )
    function = load_app(f"{tmp_path / 'app.py'}:team")
    then = await recorded_episode(store, play, model)
    replay = Replay(then.rollout_id, then.attempt_id, 3)
    (original,) = await store.get_rollouts(["ro-then"])
    rollout = Rollout("t1", mode=Mode.AUDIT, resources=original.resources, metadata=replay.as_metadata())
    async with Runner(store, function, isolation=Isolation.PROCESS) as runner:
        await store.enqueue([rollout])
        (ended,) = await asyncio.wait_for(store.wait([rollout.id]), 60)
        await runner.drain()
    assert ended.state is RolloutState.SUCCEEDED, ended.reason
    (again,) = await load_episodes(store, [ended.id])
    assert set(answered(again).values()) == {"recording"}
    assert answers.asked.total() == 3
