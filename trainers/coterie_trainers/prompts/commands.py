"""The command ``optimize``. Light to import: the work is imported when it begins."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import Stopped
from coterie.cli.extras import require_extra
from coterie.errors import ConfigError
from coterie_trainers.given_run import Fresh, Overrides, Seed, beside, let_modules_be_found, with_seed, work_folder

if TYPE_CHECKING:
    from coterie.vocabulary import JSON, Run
    from coterie_trainers.prompts.config import OptimizeConfig


def optimize(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The rollout function: app.py:team or package.module:team.")
    ],
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="What to tune and within which budget, a YAML file.")
    ],
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The work folder; runs/NAME/seed-N by default.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result to FILE, for machines.")
    ] = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
) -> None:
    """Tune the prompts of a team's roles within a budget; goes on with a run that was cut off.

    Ends with what the winner gains on the held-out test, and makes it active if that is shown.
    """
    require_extra("train", purpose="coterie optimize")
    from coterie_trainers.config_file import load_settings
    from coterie_trainers.prompts.config import OptimizeConfig
    from coterie_trainers.prompts.result import shown
    from coterie_trainers.team import load_team

    settings = load_settings(OptimizeConfig, config, with_seed(overrides, seed))
    folder = config.resolve().parent
    work = out or work_folder(settings.name, settings.seed)
    let_modules_be_found(app)
    spec = beside(app, folder)
    if settings.runner.where == "here":
        load_team(spec, folder=folder)  # the cheapest check comes first; it is not loaded twice
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.resolve().parent}.")
    try:
        run = asyncio.run(_run(spec, settings, folder=folder, work=work, fresh=fresh))
    except (KeyboardInterrupt, asyncio.CancelledError):
        command = shlex.join(["coterie", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
        raise Stopped(f"Stopped. What is done is kept in {work}; this goes on from there:\n  {command}") from None
    result = asyncio.run(_result(run, settings.store or str(work / "store.db")))
    typer.echo(shown(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


async def _run(app: str, settings: OptimizeConfig, *, folder: Path, work: Path, fresh: bool) -> Run:
    from coterie_trainers.progress_display import make_progress
    from coterie_trainers.prompts.run import optimise

    # A polite kill ends the run as Ctrl-C does.
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    progress = make_progress()
    try:
        return await optimise(app, settings, folder=folder, work=work, progress=progress, fresh=fresh)
    finally:
        progress.close()


async def _result(run: Run, url: str) -> dict[str, JSON]:
    import coterie
    from coterie_trainers.prompts.result import read_result

    async with coterie.connect(url) as store:
        return await read_result(store, run)
