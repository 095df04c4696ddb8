"""An example's modules as a copy of its folder would see them, however many examples have modules of the same names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def example_modules(name: str) -> Iterator[Callable[[str], ModuleType]]:
    """Import from an example's folder within the block; afterwards modules of those names are as they were."""
    folder = EXAMPLES / name
    names = {path.stem for path in folder.glob("*.py")}
    kept = {module: sys.modules.pop(module) for module in names & sys.modules.keys()}
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for module in names & sys.modules.keys():
            del sys.modules[module]
        sys.modules.update(kept)
