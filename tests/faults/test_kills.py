"""Servers, runners and the database are killed at random moments of a loaded run: nothing acknowledged is lost, nothing
succeeds twice, and all work ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("coterie_server.commands.serve")
pytest.importorskip("psutil")

from loaded_run import Driver, Process, Team, check_all, until
from postgres_server import PostgresServer

pytestmark = pytest.mark.kills

KILLS = int(os.environ.get("COTERIE_KILLS", "100"))
SECONDS = 420.0
"""After so long the kills and all work must have come to their end, however slow the machine."""
SEED = int(os.environ.get("COTERIE_KILLS_SEED", "4"))


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """A server that waits for the disk, as servers do."""
    server = PostgresServer(durable=True)
    yield server
    server.remove()


@pytest.mark.timeout(SECONDS + 120)
async def test_servers_runners_and_the_database_are_killed(database: PostgresServer, tmp_path: Path) -> None:
    team = Team(tmp_path, database.url(), servers=2, runners=3)
    up = asyncio.Event()
    up.set()

    async def kill_the_database() -> None:
        await up.wait()
        up.clear()
        await asyncio.to_thread(database.kill)
        restarts.append(asyncio.create_task(start_the_database()))

    async def start_the_database() -> None:
        await asyncio.to_thread(database.start)
        up.set()

    restarts: list[asyncio.Task[None]] = []
    others: list[Victim] = [(up.is_set, kill_the_database)] * 3
    await play(team, KILLS, others)
    await asyncio.gather(*restarts)


@pytest.mark.timeout(SECONDS + 120)
async def test_a_server_on_a_file_is_killed(tmp_path: Path) -> None:
    team = Team(tmp_path, f"sqlite:///{tmp_path / 'team.db'}", servers=1, runners=2)
    await play(team, max(1, KILLS // 5), only_servers=True)
    with sqlite3.connect(tmp_path / "team.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


Victim = tuple[Callable[[], bool], Callable[[], Awaitable[None]]]
"""Whether it is up, and how to kill it and start it again."""


async def play(team: Team, kills: int, others: Sequence[Victim] = (), *, only_servers: bool = False) -> None:
    """Let a team work while so many of it are killed; then all must end well, and nothing may be left."""
    choose = random.Random(SEED)
    done = 0
    driver: Driver | None = None

    async def fire(driver: Driver) -> None:
        nonlocal done
        seen = 0
        processes = team.servers if only_servers else [*team.servers, *team.runners]
        victims = [*map(killed, processes), *others]
        # It begins when the team is at work, and goes on as the team does: on a slow machine nobody would get further
        # than the start.
        await until_up(team)
        await until(lambda: driver.ended > 0, SECONDS, "the first rollouts have ended")
        while done < kills:
            await asyncio.sleep(choose.uniform(0.0, 1.0))
            team.keep_alive()
            hasty = choose.random() < 0.05
            at_work = [kill for is_up, kill in victims if hasty or is_up()]
            if at_work and (hasty or driver.acknowledged > seen):
                await choose.choice(at_work)()
                done += 1
                seen = driver.acknowledged
        driver.stopped.set()

    async def kept_alive(ids: list[str]) -> None:
        while not all(rollout.state.terminal for rollout in await stores[-1].wait(ids, timeout_seconds=1)):
            team.keep_alive()

    stores = []
    try:
        async with asyncio.timeout(SECONDS):
            await team.start()
            stores = [await team.connect(number) for number in range(len(team.servers))]
            driver = Driver(stores)
            async with asyncio.TaskGroup() as group:
                group.create_task(driver.drive())
                group.create_task(fire(driver))
            await until_up(team)
            await kept_alive(list(driver.rollouts))
        await check_all(stores[0], driver, team.runners)
        # It was a load, and the runners did most of it under fire.
        assert driver.ended > kills
        for process in [*team.runners, *team.servers]:
            assert process.stop() == 0, process.said()[-20:]
        await until(lambda: not team.left(), 20, f"these have ended: {team.left()}")
        assert not list(team.temporary.iterdir())
    except TimeoutError:
        so_far = f"{driver.ended} of {len(driver.rollouts)} rollouts had ended" if driver else "it had not begun"
        pytest.fail(f"after {SECONDS:g} s: {done} of {kills} kills; {so_far}")
    finally:
        for store in stores:
            await store.close()
        for process in [*team.runners, *team.servers]:
            process.abandon()


def killed(process: Process) -> Victim:
    async def kill() -> None:
        process.kill()
        process.start()

    return (lambda: process.ready), kill


async def until_up(team: Team) -> None:
    while not all(process.ready for process in [*team.servers, *team.runners]):
        team.keep_alive()
        await asyncio.sleep(0.05)
