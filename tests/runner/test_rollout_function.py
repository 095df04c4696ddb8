from __future__ import annotations

import asyncio
import functools

import pytest

import coterie
from coterie.errors import ConfigError
from coterie.rollouts import Given, RolloutFunction
from coterie.vocabulary import Endpoint, Mode, Task

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "m", "p")
GIVEN = Given(Task("t", 3), {"coder": "Write code."}, ENDPOINT, {"main": ENDPOINT}, Mode.TEST)


async def test_gets_what_it_asks_for_by_name_and_nothing_else() -> None:
    @coterie.rollout
    def all_of_it(task, prompts, endpoint, endpoints, mode):
        return task, prompts, endpoint, endpoints, mode

    @coterie.rollout
    async def some_of_it(mode, *, task, verbose=False, **options):
        return mode, task.input, verbose, options

    @coterie.rollout
    def nothing():
        return 1.0

    assert all_of_it.play(GIVEN) == (GIVEN.task, GIVEN.prompts, ENDPOINT, GIVEN.endpoints, Mode.TEST)
    assert await some_of_it.play(GIVEN) == (Mode.TEST, 3, False, {})
    assert nothing.play(GIVEN) == 1.0


async def test_a_plain_call_passes_through() -> None:
    @coterie.rollout
    async def team(task, shout: bool = False) -> str:
        """Docs."""
        return task.upper() if shout else task

    assert await team("hello", shout=True) == "HELLO"
    assert team.__name__ == team.name == "team"
    assert team.__doc__ == "Docs."
    assert coterie.rollout(team) is team


@pytest.mark.parametrize(
    ("parameter", "function"),
    [
        ("question", lambda question: 1.0),
        ("llm", lambda task, *, llm: 1.0),
    ],
)
def test_an_unknown_required_parameter_is_named(parameter: str, function) -> None:
    with pytest.raises(ConfigError, match=rf"parameter '{parameter}'.*task, prompts, endpoint, endpoints, mode"):
        coterie.rollout(function)


def test_what_cannot_be_a_rollout_function() -> None:
    def positional(task, /):
        return 1.0

    def generator(task):
        yield 1.0

    for wrong, message in [
        (positional, "positional-only"),
        (generator, "generator"),
        (3, "marks a function"),
        (int, "marks"),
    ]:
        with pytest.raises(ConfigError, match=message):
            coterie.rollout(wrong)  # type: ignore[call-overload]


def test_knows_which_functions_are_asynchronous() -> None:
    async def team(task):
        return 1.0

    class Team:
        async def __call__(self, task):
            return 1.0

    def plain(task):
        return 1.0

    assert RolloutFunction(team).asynchronous
    assert RolloutFunction(functools.partial(team)).asynchronous
    assert RolloutFunction(Team()).asynchronous
    assert not RolloutFunction(plain).asynchronous
    assert asyncio.iscoroutinefunction(team)


def test_a_function_inside_another_cannot_be_found_by_a_worker_process() -> None:
    @coterie.rollout
    def team(task):
        return 1.0

    with pytest.raises(ConfigError, match="top level of a file"):
        _ = team.origin
