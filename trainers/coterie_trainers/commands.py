"""The commands ``train``, ``demo``, ``report`` and ``audit``. Light to import: the work is imported when it begins."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import Stopped
from coterie.cli.extras import MissingExtraError, require_extra
from coterie.errors import ConfigError
from coterie.vocabulary import Mode
from coterie_trainers.given_run import Fresh, Overrides, Seed, beside, let_modules_be_found, with_seed, work_folder

if TYPE_CHECKING:
    from coterie_trainers.audits import Audit
    from coterie_trainers.config import TrainConfig

DEMO = "text_to_sql"
"""The example that ``coterie demo`` trains."""

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the report's figures to FILE, for machines.")
]


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

    settings = load_config(config, with_seed(overrides, seed))
    work = out or work_folder(settings.name, settings.seed)
    _train_and_report(
        beside(app, config.resolve().parent),
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
    settings = load_config(out / "config.yaml", with_seed(overrides, seed))
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


def audit(
    app: Annotated[
        str, typer.Argument(metavar="APP", help="The rollout function: app.py:team or package.module:team.")
    ],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration that the run was made with.")],
    method: Annotated[
        str, typer.Option(help="'mask': what is each role worth? 'replay': which turn decides?")
    ] = "mask",
    run: Annotated[str | None, typer.Option(help="The run's id; that of the work folder by default.")] = None,
    sample: Annotated[int, typer.Option(metavar="N", min=1, help="How many of its rollouts are audited.")] = 32,
    replays: Annotated[
        int, typer.Option(metavar="N", min=1, help="Replays a rollout and role (mask) or call (replay).")
    ] = 2,
    mode: Annotated[
        str | None,
        typer.Option(help="Of which mode: test, val or train, its newest; by default the first that there are any of."),
    ] = None,
    mask_text: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=TEXT", help="What a masked role says, where '(no answer)' breaks the program."),
    ] = None,
    as_pinned: Annotated[
        bool, typer.Option("--as-pinned", help="Serve no model: those that the rollouts called still run.")
    ] = False,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's work folder; runs/NAME/seed-N by default.")
    ] = None,
    json_file: JsonFile = None,
    overrides: Overrides = None,
) -> None:
    """Find the role or the turn that made the difference: plays a sample of a run's rollouts again, changed at one place.

    Serves the run's final policies for it. One that is cut off goes on with what is missing.
    """
    from coterie_trainers.audits.findings import Method
    from coterie_trainers.config_file import load_config

    if method not in list(Method):
        raise ConfigError(f"--method {method}: there are {' and '.join(Method)}.")
    if mode not in (None, "test", "val", "train"):
        raise ConfigError(f"--mode {mode}: rollouts of mode test, val and train can be audited.")
    folder = config.resolve().parent
    settings = load_config(config, with_seed(overrides, seed))
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.resolve().parent}.")
    let_modules_be_found(app)
    if not as_pinned:
        _require_training_stack()
    what = {
        "method": Method(method),
        "sample": sample,
        "replays": replays,
        "run_id": run,
        "mode": None if mode is None else Mode(mode),
        "mask_texts": dict(map(_role_and_text, mask_text or [])),
        "as_pinned": as_pinned,
        "folder": folder,
        "work": out or work_folder(settings.name, settings.seed),
    }
    try:
        found = asyncio.run(_audit(beside(app, folder), settings, what))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise Stopped("Stopped. The replays that are done are kept: the same command goes on with the rest.") from None
    _show_audit(found, json_file)


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

    let_modules_be_found(app)
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


async def _audit(app: str, settings: TrainConfig, what: dict[str, Any]) -> Audit:
    from coterie_trainers.audits.audited_run import audit_run
    from coterie_trainers.progress_display import make_progress

    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    progress = make_progress()
    try:
        return await audit_run(app, settings, progress=progress, **what)
    finally:
        progress.close()


def _show_audit(audit: Audit, json_file: Path | None) -> None:
    from rich.console import Console

    from coterie_trainers.report.audits import audit_as_json, shown
    from coterie_trainers.report.terminal import audit_parts

    found, console = shown(audit), Console()
    for part in audit_parts(found):
        console.print(part, highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(audit_as_json(found), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _require_training_stack() -> None:
    require_extra("verl", purpose="Training")
    try:
        version("vllm")
    except PackageNotFoundError:
        raise MissingExtraError(
            "Training needs vLLM, which is installed apart from the extras because each machine needs its own build. "
            "`coterie doctor` says what this one has and what to do."
        ) from None


def _role_and_text(given: str) -> tuple[str, str]:
    role, sign, text = given.partition("=")
    if not sign or not role:
        raise ConfigError(f"--mask-text {given}: give it as ROLE=TEXT, such as coder='{{}}'.")
    return role, text
