"""The commands of ``coterie``: our own, and what installed packages add by entry points.

An entry point of group ``coterie.commands`` names a plain function whose parameters carry Typer annotations and whose
docstring is the help; or a ``typer.Typer`` of several, whose help is the docstring of its module. For the list of commands
these docstrings are read from the source, without importing it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

GROUP = "coterie.commands"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is there, imported only when it runs."""

    name: str
    entry: EntryPoint

    def load(self) -> Callable[..., Any]:
        """The function that runs it. May raise whatever importing its module raises."""
        return cast("Callable[..., Any]", self.entry.load())

    @property
    def described(self) -> Callable[[], None]:
        """A function that does nothing and has the command's help."""

        def command() -> None:
            pass

        command.__doc__ = _docstring(self.entry.module, self.entry.attr)
        return command


def find_commands() -> Sequence[Command]:
    """Our own commands first, then the others by name. The first of a name counts."""
    own = [
        EntryPoint("doctor", "coterie.cli.doctor:doctor", GROUP),
        EntryPoint("show", "coterie.cli.show:show", GROUP),
        EntryPoint("run", "coterie.cli.run:run", GROUP),
        EntryPoint("dead", "coterie.cli.upkeep:dead", GROUP),
        EntryPoint("requeue", "coterie.cli.upkeep:requeue", GROUP),
        EntryPoint("prompts", "coterie.cli.prompts:prompts", GROUP),
        EntryPoint("prune", "coterie.cli.upkeep:prune", GROUP),
        EntryPoint("export", "coterie.cli.transfer:export", GROUP),
        EntryPoint("import", "coterie.cli.transfer:import_", GROUP),
    ]
    found: dict[str, Command] = {}
    for entry in [*own, *sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]:
        found.setdefault(entry.name, Command(entry.name, entry))
    return list(found.values())


def _docstring(module: str, function: str) -> str:
    """A function's docstring, else that of its module, read from its file; empty if it cannot be read."""
    package, _, rest = module.partition(".")
    try:
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            return ""
        file = Path(found.origin)
        if rest:
            file = file.parent.joinpath(*rest.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, ImportError):
        return ""
    nodes = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return next((ast.get_docstring(node) or "" for node in nodes), ast.get_docstring(tree) or "")
