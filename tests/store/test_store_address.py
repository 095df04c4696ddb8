"""Addresses of stores: which are understood, and what the others are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import coterie
from coterie.errors import ConfigError, StoreUnavailableError
from coterie.vocabulary import Task


@pytest.mark.parametrize("form", ["{path}", "sqlite:///{path}"])
async def test_a_path_and_its_address_open_the_same_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "my runs.db"
    async with coterie.connect(form.format(path=path)) as store:
        await store.add_tasks([Task("t", 1)])
    store = await coterie.connect(path)
    assert [task.id for task in (await store.list_tasks()).items] == ["t"]
    await store.close()


async def test_relative_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with coterie.connect("sqlite:///here.db"), coterie.connect("there.db"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["here.db", "there.db"]


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("mysql://host/db", "sqlite://"),
        ("sqlite://", "a store is a file"),
        ("sqlite:///", "a store is a file"),
        ("sqlite:///:memory:", "a store is a file"),
        (":memory:", "a store is a file"),
        ("", "a store is a file"),
        ("sqlite://runs.db", "sqlite:///runs.db"),
    ],
)
def test_other_addresses_are_refused_with_advice(address: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        coterie.connect(address)


async def test_a_store_that_cannot_be_opened_is_an_error_on_entry(tmp_path: Path) -> None:
    connecting = coterie.connect(tmp_path)
    with pytest.raises(StoreUnavailableError):
        async with connecting:
            pass


def test_the_name_connect_stays_a_function_and_imports_no_database() -> None:
    program = (
        "import sys, coterie; from coterie import connect; connect('x.db'); "
        "assert callable(coterie.connect); print('sqlalchemy' in sys.modules, 'sqlmodel' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "False False\n"


def test_a_program_that_reaches_a_server_imports_no_database() -> None:
    pytest.importorskip("aiohttp")
    program = (
        "import sys, coterie; coterie.connect('http://127.0.0.1:1'); "
        "print('coterie.store.http' in sys.modules, 'sqlalchemy' in sys.modules, 'sqlmodel' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "True False False\n"


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [("postgresql://me:hush@host/db", "psycopg", "postgres"), ("http://host:8080", "aiohttp", "client")],
)
def test_what_an_address_needs_is_named_when_it_is_missing(address: str, package: str, extra: str) -> None:
    program = (
        f"import sys, coterie; sys.modules[{package!r}] = None\n"
        f"try: coterie.connect({address!r})\n"
        "except coterie.CoterieError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert f'pip install "coterie[{extra}]"' in told.stdout
    assert "hush" not in told.stdout
