"""Finds a run's store, computes the figures, and writes the report everywhere it is wanted."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

import coterie
from coterie.errors import ConfigError, NotFoundError
from coterie.vocabulary import Run
from coterie_trainers.report.figures import Figures, compute_figures
from coterie_trainers.report.machine import as_json
from coterie_trainers.report.page import render_page
from coterie_trainers.report.places import Places
from coterie_trainers.report.terminal import print_report
from coterie_trainers.report.tuning import TuningFigures, compute_tuning
from coterie_trainers.report.tuning.machine import tuning_as_json
from coterie_trainers.report.tuning.page import render_tuning
from coterie_trainers.report.tuning.terminal import print_tuning

LATEST = "latest"
STORE_FILE = "store.db"
USUAL_PLACES = (STORE_FILE, f"*/{STORE_FILE}", f"coterie-demo/*/{STORE_FILE}", f"runs/*/*/{STORE_FILE}")
"""Where stores lie below the folder that one works in."""
BELOW = (STORE_FILE, f"*/{STORE_FILE}", f"*/*/{STORE_FILE}")
"""Where stores lie below a folder that ``--out`` names."""


async def make_report(
    url: str,
    run_id: str,
    *,
    work: Path | None = None,
    json_file: Path | None = None,
    html_file: Path | None = None,
    console: Console | None = None,
) -> Figures | TuningFigures:
    """Compute a run's figures, those of its kind; print them, write the page, and the JSON if a file is given.

    Args:
        url: The store's address.
        run_id: The run.
        work: The work folder; by default the folder of the store's file.
        json_file: Where the figures go for machines.
        html_file: Where the page goes; ``report.html`` in the work folder by default.
        console: Where the report is printed; standard output by default.

    Raises:
        NotFoundError: the store has no such run.
        ConfigError: a file cannot be written.
    """
    async with coterie.connect(url) as store:
        run = await store.get_run(run_id)
        figures = await compute_tuning(store, run) if run.kind == "optimize" else await compute_figures(store, run_id)
    file = _store_file(url)
    work = (work or (file.parent if file else Path())).resolve()
    page = (html_file or work / "report.html").resolve()
    places = Places(store=str(file.resolve()) if file else url, work=work, page=page)
    console = console or Console()
    if isinstance(figures, TuningFigures):
        text = await asyncio.to_thread(render_tuning, figures, places)
        values = tuning_as_json(figures, places)
    else:
        text = await asyncio.to_thread(render_page, figures, places)
        values = as_json(figures, places)
    _write(page, text, option="--html")
    if json_file is not None:
        _write(json_file, json.dumps(values, indent=2, allow_nan=False) + "\n", option="--json")
    if isinstance(figures, TuningFigures):
        print_tuning(figures, places, console)
    else:
        print_report(figures, places, console)
    return figures


async def find_store(run: str, *, url: str | None, folder: Path | None) -> tuple[str, str]:
    """The address of the store that holds a run, and the run's id.

    Args:
        run: A run's id, or ``latest``.
        url: The store, if it is known.
        folder: A work folder or one above it; by default the usual places below the present folder.

    Raises:
        ConfigError: there is no store.
        NotFoundError: no store has the run; the message lists the newest there are.
    """
    found: list[tuple[Run, str]] = []
    for address in [url] if url is not None else _stores(folder):
        file = _store_file(address)
        if file is not None and not file.is_file():
            raise ConfigError(f"There is no store {address}. Name one with --store, or its work folder with --out.")
        async with coterie.connect(address) as store:
            found += [(each, address) for each in (await store.list_runs(limit=20)).items]
            if run != LATEST and all(each.id != run for each, _ in found):
                try:
                    found.append((await store.get_run(run), address))
                except NotFoundError:
                    continue
    wanted = [(each, address) for each, address in found if run in (LATEST, each.id)]
    if not wanted:
        newest = [each.id for each, _ in sorted(found, key=_age)][:5]
        there = f"There are: {', '.join(newest)}." if newest else "There is no run yet."
        raise NotFoundError(f"No run {run!r}. {there}" if run != LATEST else "The store holds no run yet.")
    best, address = min(wanted, key=_age)
    return address, best.id


def _age(found: tuple[Run, str]) -> int:
    return -found[0].created_ns


def _stores(folder: Path | None) -> Sequence[str]:
    base = folder or Path()
    patterns = USUAL_PLACES if folder is None else BELOW
    files = {file for pattern in patterns for file in base.glob(pattern) if file.is_file()}
    if not files:
        looked = base if folder is not None else f"{base.resolve()} (also in coterie-demo/ and runs/)"
        raise ConfigError(f"There is no {STORE_FILE} in {looked}. Name the work folder with --out, or --store URL.")
    return [str(file) for file in sorted(files)]


def _store_file(url: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    if "://" not in url:
        return Path(url)
    return Path(url.split("://", 1)[1][1:]) if urlsplit(url).scheme == "sqlite" else None


def _write(path: Path, text: str, *, option: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Name another file with {option}.") from error
