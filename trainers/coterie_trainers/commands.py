"""The commands ``coterie train``, ``coterie demo`` and ``coterie report``. Light to import: the work is imported when it begins."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import Stopped
from coterie.cli.extras import MissingExtraError, require_extra
from coterie.errors import ConfigError

if TYPE_CHECKING:
    from coterie_trainers.config import TrainConfig

DEMO = "text_to_sql"
"""The example that ``coterie demo`` trains."""

Seed = Annotated[int | None, typer.Option(help="Seed of the run; the config's by default.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report's figures to FILE, for machines.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as training.steps=5. May be repeated."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget an unfinished run and start anew.")]


def train(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The rollout function: app.py:team or package.module:team.")
    ],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The training configuration, a YAML file.")],
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The work folder; runs/NAME/seed-N by default.")
    ] = None,
    json_file: JsonFile = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
) -> None:
    """Train a team's policies by reinforcement learning; goes on with a run that was cut off.

    Ends with the report: success before and after, per role and per family, and what it cost.
    """
    from coterie_trainers.config_file import load_config

    settings = load_config(config, _with_seed(overrides, seed))
    work = out or Path("runs") / _file_name(settings.name) / f"seed-{settings.seed}"
    _train_and_report(
        _beside(app, config.resolve().parent),
        settings,
        folder=config.resolve().parent,
        work=work,
        json_file=json_file,
        fresh=fresh,
    )


def demo(
    seed: Seed = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the example is copied to and trained.")] = Path(
        "coterie-demo"
    ),
    json_file: JsonFile = None,
    overrides: Overrides = None,
    fresh: Fresh = False,
) -> None:
    """Watch a team of three learn text-to-SQL on this machine: no key, no GPU, about ten minutes.

    Copies the example to DIR and trains it there, as ``coterie train app.py:team config.yaml`` would.
    """
    from coterie_trainers.config_file import load_config

    copy_example(DEMO, out)
    settings = load_config(out / "config.yaml", _with_seed(overrides, seed))
    work = out / f"seed-{settings.seed}"
    _train_and_report("app.py:team", settings, folder=out.resolve(), work=work, json_file=json_file, fresh=fresh)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or 'latest'.")] = "latest",
    store: Annotated[str | None, typer.Option(metavar="URL", help="The store that holds the run.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The work folder of the run, or a folder above it.")
    ] = None,
    json_file: JsonFile = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Where the page goes; beside the store by default.")
    ] = None,
) -> None:
    """Show what a run achieved, also while it goes on: figures, curve, episodes, costs, health."""
    require_extra("train", purpose="coterie report")
    from coterie_trainers.report import find_store, make_report

    if store is not None and out is not None:
        raise ConfigError("Give --store or --out, not both.")
    url, run_id = asyncio.run(find_store(run, url=store, folder=out))
    asyncio.run(make_report(url, run_id, json_file=json_file, html_file=html_file))


def copy_example(name: str, target: Path) -> None:
    """Copy an example's folder; files that are there already stay as they are.

    Raises:
        ConfigError: the target cannot be written.
    """
    source = example_folder(name)
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc")

    def copy_missing(from_: str, to: str) -> None:
        if not Path(to).exists():
            shutil.copyfile(from_, to)

    try:
        shutil.copytree(source, target, ignore=left_out, copy_function=copy_missing, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise ConfigError(
            f"The example cannot be copied to {target}: {error}. Name another folder with --out."
        ) from error


def example_folder(name: str) -> Path:
    """Where an example lies: in the installed package, or in the checkout that it is installed from."""
    package = Path(__file__).resolve().parent
    candidates = (package / "examples" / name, package.parents[1] / "examples" / name)
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise ConfigError(f"The example {name!r} is not part of this installation. Install Coterie again.")
    return found


def _train_and_report(
    app: str, settings: TrainConfig, *, folder: Path, work: Path, json_file: Path | None, fresh: bool
) -> None:
    from coterie_trainers.team import load_team

    if not app.rpartition(":")[0].endswith(".py"):
        sys.path.append(str(Path.cwd()))  # a module beside the user, which a console script does not see by itself
    if settings.runner.where == "here":
        load_team(app, folder=folder)  # the cheapest check comes first; it is not loaded twice
    _require_training_stack()
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.resolve().parent}.")
    try:
        asyncio.run(_run(app, settings, folder=folder, work=work, json_file=json_file, fresh=fresh))
    except (KeyboardInterrupt, asyncio.CancelledError):
        command = shlex.join(["coterie", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
        raise Stopped(
            f"Stopped. What is done is kept in {work}; this goes on from the last step:\n  {command}"
        ) from None


async def _run(
    app: str, settings: TrainConfig, *, folder: Path, work: Path, json_file: Path | None, fresh: bool
) -> None:
    from coterie_trainers.loop.run import train as run_training
    from coterie_trainers.progress_display import make_progress
    from coterie_trainers.report import make_report

    # A polite kill ends the run as Ctrl-C does, so that no model server is left behind.
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    progress = make_progress()
    try:
        run = await run_training(app, settings, folder=folder, work=work, progress=progress, fresh=fresh)
    finally:
        progress.close()
    await make_report(settings.store or str(work / "store.db"), run.id, work=work, json_file=json_file)


def _require_training_stack() -> None:
    require_extra("verl", purpose="Training")
    try:
        version("vllm")
    except PackageNotFoundError:
        raise MissingExtraError(
            "Training needs vLLM, which is installed apart from the extras because each machine needs its own build. "
            "`coterie doctor` says what this one has and what to do."
        ) from None


def _with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    return [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]


def _beside(app: str, folder: Path) -> str:
    """The app as the training loop looks for it: a file in the working folder is named from the config's folder."""
    file, colon, name = app.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file() or (folder / file).is_file():
        return app
    return f"{os.path.relpath(path.resolve(), folder)}:{name}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
