"""``coterie export`` and ``coterie import``: a store to a folder of files, and back."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.amounts import size_text, time_of
from coterie.cli.given_store import StoreUrl, raise_if_absent
from coterie.connecting import connect
from coterie.errors import ConfigError
from coterie.transfer import Format, Manifest, Range, export_store, import_store
from coterie.vocabulary import now_ns

REPORT_SECONDS = 2.0
"""How often it is said how far it is."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]


def export(
    store: StoreUrl,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="Lines of JSON, plain or compressed, or Parquet (extra 'parquet').")
    ] = Format.JSONL,
    run_id: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Only the rollouts of this run, and what they need.")
    ] = None,
    queued_from: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Only what was queued since: 2026-05-01, or 7d ago.")
    ] = None,
    queued_before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Only what was queued before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a store, a run or a time to a folder of files, while the store is in use. For backups, moves, analysis."""
    now = now_ns()
    only = Range(
        run_id=run_id,
        from_ns=None if queued_from is None else time_of(queued_from, "--from", now_ns=now),
        before_ns=None if queued_before is None else time_of(queued_before, "--before", now_ns=now),
    )
    raise_if_absent(store)

    async def work() -> Manifest:
        async with connect(store) as opened:
            return await export_store(opened, to, only=only, format=format, told=_Progress("exported"))

    _say(asyncio.run(work()), f"exported to {to}", as_json)


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `coterie export` wrote.")],
    store: StoreUrl,
    as_json: AsJson = False,
) -> None:
    """Add what was exported to a store; what it has already stays as it is. Run it again if it was cut off."""

    async def work() -> Manifest:
        Manifest.read(folder)  # before a store is made for nothing
        async with connect(store) as opened:
            return await import_store(folder, opened, told=_Progress("imported"))

    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name what was given to `coterie export --to`.")
    _say(asyncio.run(work()), f"imported from {folder}", as_json)


def _say(manifest: Manifest, what: str, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(asdict(manifest)))
        return
    counts = ", ".join(f"{entry.records:,} {kind}" for kind, entry in manifest.files.items() if entry.records)
    size = size_text(sum(entry.bytes for entry in manifest.files.values()))
    typer.echo(f"{what}: {counts or 'nothing, the store is empty'} ({size})")


class _Progress:
    """A line now and then, on standard error."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._said_at = time.monotonic()

    def __call__(self, kind: str, count: int) -> None:
        now = time.monotonic()
        if now - self._said_at >= REPORT_SECONDS:
            self._said_at = now
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {count:,} {kind} {self._word}\n")
            sys.stderr.flush()
