"""A tiny model made on the spot, and a backend around it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from left_behind import LeftBehind


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[LeftBehind]:
    known = LeftBehind(monkeypatch)
    yield known
    shutil.rmtree(known.temporary, ignore_errors=True)
