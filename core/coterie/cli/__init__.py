"""The ``coterie`` command: finds its commands by entry points, imports only the one that runs, explains errors.

Exit codes: 0 done; 1 a fault of Coterie, or a problem that ``doctor`` found; 2 wrong input, or an error that its message
explains; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from coterie.cli.commands import find_commands
from coterie.cli.extras import extra_of_module, install_command
from coterie.errors import CoterieError

EXPLAINED = 2
"""Exit code of an error whose message says what to do."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C in a command that can go on later; the message says how."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (by default that of the process) and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("COTERIE_DEBUG", "") not in ("", "0")
    given = [argument for argument in given if argument != "--debug"]
    try:
        application(given)(args=given, prog_name="coterie")
    except CoterieError as error:
        if debug:
            raise
        _say(f"Error: {error}")
        sys.exit(EXPLAINED)
    except ModuleNotFoundError as error:
        extra = extra_of_module(error.name or "")
        if debug or extra is None:
            raise
        _say(f"Error: the module {error.name} is not installed. Do: {install_command(extra)}")
        sys.exit(EXPLAINED)


def application(arguments: Sequence[str]) -> typer.Typer:
    """All commands: the one that ``arguments`` name is imported, the others are only described for the help."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_coterie)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    for command in find_commands():
        loaded = command.load() if command.name == wanted else command.described
        if isinstance(loaded, typer.Typer):
            for part in loaded.registered_commands:
                part.callback = part.callback and _leaving_typer(part.callback)
            app.add_typer(loaded, name=command.name)
        else:
            app.command(command.name)(_leaving_typer(loaded))
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coterie {importlib.metadata.version('coterie')}")
        raise typer.Exit


def _coterie(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also COTERIE_DEBUG=1).")
    ] = False,
) -> None:
    """A team of agents learns from its own traces."""


def _leaving_typer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Carry Ctrl-C past Typer, whose versions differ in what they make of it."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except KeyboardInterrupt as stop:
            _say(str(stop) or "Stopped.")
            sys.exit(INTERRUPTED)

    return run


def _say(text: str) -> None:
    typer.echo(text, err=True)
