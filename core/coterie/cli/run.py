"""``coterie run``: a runner in a process of its own, one of many that play the rollouts of one store."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import INTERRUPTED, Stopped
from coterie.cli.given_store import StoreUrl, raise_if_absent
from coterie.connecting import connect
from coterie.errors import ConfigError
from coterie.runner.embedded import STOP_SECONDS, Isolation, Runner

if TYPE_CHECKING:
    from coterie.cli.run_display import RunDisplay
    from coterie.rollouts import RolloutFunction
    from coterie.store.base import Store

REPORT_SECONDS = 10.0
"""How often what was done is said."""
LIVE_SECONDS = 0.5
"""How often the line of a terminal is written anew."""
LEAVE_SECONDS = 8.0
"""How long giving back may take after the second signal: async functions have 5 s to clean up."""


def run(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The rollout function: app.py:team or package.module:team.")
    ],
    store: StoreUrl,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="How many attempts run at once.")] = 32,
    isolation: Annotated[
        Isolation, typer.Option(help="'process': each attempt in a worker process, which its deadline kills.")
    ] = Isolation.NONE,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many worker processes, with --isolation process.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Take only rollouts of this training or tuning run.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long an attempt may take, unless its rollout says it.")
    ] = None,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", help="After so long without a sign of life others take over.")
    ] = 60.0,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Agents call their models through the gateway of this `coterie serve`."),
    ] = None,
    worker: Annotated[
        str | None, typer.Option(metavar="NAME", help="This runner's name in the store; host and process by default.")
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long running attempts may go on after SIGTERM or Ctrl-C.")
    ] = 30.0,
    until_idle: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End when there was no work for so long.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Play what is queued now, then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object a line, for machines.")] = False,
) -> None:
    """Play queued rollouts of a store until told to stop. Start as many as you like, on as many hosts.

    SIGTERM or Ctrl-C: takes no more work, lets running attempts end, gives back the others. A second one: at once.
    """
    if processes is not None and isolation is not Isolation.PROCESS:
        raise ConfigError("--processes: worker processes are there with --isolation process only. Give both, or none.")
    if once and until_idle is not None:
        raise ConfigError("--once and --until-idle: give one of them. --once is --until-idle 0.")
    for name, seconds, least in (("--drain-seconds", drain_seconds, 0), ("--lease", lease, 1)):
        if not (math.isfinite(seconds) and seconds >= least):
            raise ConfigError(f"{name} {seconds}: it must be a finite number of at least {least}.")
    if gateway is not None and not gateway.startswith(("http://", "https://")):
        raise ConfigError(f"--gateway {gateway}: give a server's address, such as http://127.0.0.1:4747.")
    from coterie.apps import let_clients_be_made, load_app
    from coterie.cli.run_display import make_display

    let_clients_be_made()
    function = load_app(app, folder=Path.cwd())
    raise_if_absent(store)
    options: dict[str, Any] = {
        "concurrency": concurrency,
        "isolation": isolation,
        "processes": processes,
        "run_id": run_id,
        "deadline_seconds": deadline,
        "lease_seconds": lease,
        "worker": worker,
        "gateway": gateway,
        "idle_seconds": 0.0 if once else until_idle,
    }
    display = make_display(as_json=as_json)
    logging.getLogger("coterie").addHandler(display.log_handler)
    loop = asyncio.Runner()
    try:
        at_once, abandoned = loop.run(_run(function, store, options, drain_seconds, display))
    finally:
        display.close()
    if abandoned:
        # The loop would wait for tasks that nothing can end.
        display.line("What could not be ended ends with this process.")
        os._exit(INTERRUPTED if at_once else 0)
    loop.close()
    if at_once:
        raise Stopped("Stopped at once; running attempts were given back.")


async def _run(
    function: RolloutFunction[..., Any], url: str, options: dict[str, Any], drain_seconds: float, display: RunDisplay
) -> tuple[bool, int]:
    """True if it was told to leave at once, and how many attempts still run though they were ended."""
    async with connect(url) as store:
        runner = Runner(store, function, on_end=display.ended, **options)
        await _raise_if_not_allowed(store, runner.worker)
        stop = _Signals()
        async with runner:
            display.started(runner)
            reports = asyncio.create_task(_report(runner, display))
            try:
                await stop.first_or(runner.idle())
                if stop.count:
                    display.draining(runner, stop.name, drain_seconds)
                await stop.second_or(runner.drain(), at_most=drain_seconds)
                await stop.second_or(runner.give_back(), at_most=STOP_SECONDS)
                await runner.stop(within_seconds=LEAVE_SECONDS)
            finally:
                reports.cancel()
                await asyncio.gather(reports, return_exceptions=True)
                display.stopped(runner)
        return stop.count > 1, runner.statistics.abandoned


async def _raise_if_not_allowed(store: Store, worker: str) -> None:
    """Fail at once, with the store's words, where it would refuse all that a runner does: a wrong token, a read-only
    database. A heartbeat for an attempt that there is not changes nothing.
    """
    await store.heartbeat([f"{worker} asks whether it may work"])


async def _report(runner: Runner, display: RunDisplay) -> None:
    while True:
        await asyncio.sleep(LIVE_SECONDS if display.live else REPORT_SECONDS)
        display.report(runner)


class _Signals:
    """SIGTERM and SIGINT: the first, and the second. A third ends the process as if nobody listened."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._came, number)

    async def first_or(self, work: Awaitable[None]) -> None:
        """Until the work is done or the first signal came."""
        await _either(self._first, work)

    async def second_or(self, work: Awaitable[None], *, at_most: float) -> None:
        """Until the work is done, the second signal came, or the seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await _either(self._second, work)

    def _came(self, number: signal.Signals) -> None:
        self.count += 1
        self.name = signal.Signals(number).name
        self._first.set()
        if self.count > 1:
            self._second.set()
            for each in (signal.SIGTERM, signal.SIGINT):
                self._loop.remove_signal_handler(each)


async def _either(event: asyncio.Event, work: Awaitable[None]) -> None:
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(work), asyncio.create_task(event.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
