"""The example's own modules, as a copy of its folder would see them, with a database of this test run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_to_sql"
sys.path.insert(0, str(EXAMPLE))
os.environ.setdefault("OPENAI_API_KEY", "unused")


@pytest.fixture(scope="session", autouse=True)
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's database in a folder of its own."""
    import database

    database.DATABASE = tmp_path_factory.mktemp("shop") / "shop.db"
    database.build_database(database.DATABASE)
    return database.DATABASE
