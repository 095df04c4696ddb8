"""``load_app``: from ``app.py:team`` or ``package.module:team`` to the rollout function that it names."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from coterie.errors import ConfigError
from coterie.rollouts import RolloutFunction


def load_app(spec: str, *, folder: Path | None = None) -> RolloutFunction[..., Any]:
    """Load the rollout function that ``file.py:name`` or ``package.module:name`` names.

    ``folder`` is where a relative file or a module is looked for; the present folder by default. The file's own
    folder (for a module: ``folder``) is put on ``sys.path``, as ``python file.py`` does. A plain function that is not
    marked with ``@coterie.rollout`` is taken as if it were.

    Raises:
        ConfigError: no such file or module, an error while importing it (with the user's own last line), no such
            name (with the rollout functions there are), or it names no function.
    """
    found, module, origin = _find(spec, folder or Path())
    if isinstance(found, RolloutFunction):
        found.found_at(origin)
        return found
    if inspect.isroutine(found):
        return RolloutFunction(found, origin)
    raise _not_there(spec, found, module)


def load_function(spec: str, *, folder: Path) -> Callable[..., Any]:
    """Load a function that is no app from where ``load_app`` would: ``file.py:name`` or ``package.module:name``.

    Raises:
        ConfigError: as ``load_app``.
    """
    found, module, _ = _find(spec, folder)
    if not inspect.isroutine(found):
        raise _not_there(spec, found, module)
    return found


NO_KEY = "none: calls go to the policy's endpoint"
"""Stands in for a key of OpenAI's where the user has none."""


def let_clients_be_made() -> None:
    """Give ``OPENAI_API_KEY`` a text that is no key where none is set.

    A team's agents call the policies' endpoints while they train, but many clients refuse to be made without a key, often in
    the team's own modules as they are imported.
    """
    os.environ.setdefault("OPENAI_API_KEY", NO_KEY)


def _find(spec: str, folder: Path) -> tuple[object, ModuleType, str]:
    """What a text names, the module that it is in, and where another process finds it."""
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"App {spec!r}: write it as 'app.py:team' or 'package.module:team', file or module first.")
    if place.endswith(".py") or os.sep in place:
        file = (folder / place).resolve()
        module = _load_file(file, spec)
        return getattr(module, name, None), module, f"{file}:{name}"
    module = _load_module(place, spec, folder.resolve())
    return getattr(module, name, None), module, f"{place}:{name}"


def _not_there(spec: str, found: object, module: ModuleType) -> ConfigError:
    name = spec.rpartition(":")[2]
    problem = f"there is no {name!r}" if found is None else f"{name!r} is no function but {type(found).__name__}"
    return ConfigError(f"App {spec!r}: {problem} in {module.__file__}. {_choices(module)}")


def _load_file(file: Path, spec: str) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"App {spec!r}: there is no file {file}.")
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.util.spec_from_file_location(name, file)
    if loader is None or loader.loader is None:
        raise ConfigError(f"App {spec!r}: {file} is no Python file.")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    try:
        loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(spec, error) from error
    return module


def _module_name(file: Path) -> str:
    """The file's stem, as its neighbours would import it, unless another module has this name."""
    try:
        other = importlib.util.find_spec(file.stem)
    except (ImportError, ValueError):
        other = None
    if other is not None and other.origin is not None and Path(other.origin).resolve() == file:
        return file.stem
    return f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _load_module(name: str, spec: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"App {spec!r}: there is no module {error.name!r}, neither installed nor in {folder}. "
                "For a file write 'path/to/app.py:team'."
            ) from error
        raise _import_error(spec, error) from error
    except (Exception, SystemExit) as error:
        raise _import_error(spec, error) from error


def _import_error(spec: str, error: BaseException) -> ConfigError:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return ConfigError(f"App {spec!r} cannot be imported: {what}")
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename != __file__ and "importlib" not in frame.filename and not _installed(frame.filename):
            where = f"\n  {frame.filename}, line {frame.lineno}: {frame.line}"
    hint = (
        "\n  Put what should run only as a script under 'if __name__ == \"__main__\":'."
        if isinstance(error, SystemExit)
        else ""
    )
    return ConfigError(f"App {spec!r} cannot be imported: {what}{where}{hint}")


def _installed(filename: str) -> bool:
    return "site-packages" in Path(filename).parts or filename.startswith(("<frozen", str(Path(os.__file__).parent)))


def _choices(module: ModuleType) -> str:
    found = [name for name, value in vars(module).items() if isinstance(value, RolloutFunction)]
    if found:
        return f"Rollout functions there: {', '.join(found)}."
    return "No function there is marked with @coterie.rollout."
