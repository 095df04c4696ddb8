"""``coterie prune``, ``coterie dead`` and ``coterie requeue``: what a store keeps, and what became of its failures."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coterie.cli.amounts import bytes_of, seconds_of, size_text
from coterie.cli.given_store import StoreUrl, raise_if_absent
from coterie.connecting import connect
from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.store.retention import Pruned, Retention
from coterie.vocabulary import Mode, Rollout, RolloutState, now_ns

PAGE = 1000
"""Rollouts that are read at once."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
OfRun = Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only rollouts of this run.")]


def prune(
    store: StoreUrl,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what ended longer ago, such as 30d, 12h.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove what ended first until the store fits, such as 10GB.")
    ] = None,
    keep_mode: Annotated[
        list[Mode] | None, typer.Option(help="Never remove rollouts of this mode. May be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old rollouts with their attempts, spans and rewards. Tasks, resources and runs stay, and what has not ended."""
    if older_than is None and max_size is None:
        raise ConfigError("prune: say what may go, with --older-than 30d, --max-size 10GB, or both.")
    retention = Retention(
        max_age_seconds=None if older_than is None else seconds_of(older_than, "--older-than"),
        max_bytes=None if max_size is None else bytes_of(max_size, "--max-size"),
        keep_modes=tuple(keep_mode or ()),
    )
    raise_if_absent(store)
    typer.echo(asyncio.run(_would_prune(store, retention, as_json) if dry_run else _pruned(store, retention, as_json)))


def dead(
    store: StoreUrl,
    run_id: OfRun = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, the latest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List dead rollouts and why they died. `coterie requeue` gives them another try."""
    raise_if_absent(store)
    typer.echo(asyncio.run(_listed(store, run_id, limit, as_json)))


def requeue(
    store: StoreUrl,
    rollouts: Annotated[list[str] | None, typer.Argument(metavar="[ROLLOUT]…", help="Ids of rollouts.")] = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="All dead rollouts of the store, or of --run.")] = False,
    run_id: OfRun = None,
    attempts: Annotated[int, typer.Option(metavar="N", min=1, help="How many more attempts each may have.")] = 1,
) -> None:
    """Put dead or cancelled rollouts back into the queue. A repetition is safe."""
    if bool(rollouts) == all_dead:
        raise ConfigError("requeue: name rollouts, or give --all-dead; `coterie dead` lists them.")
    if run_id is not None and not all_dead:
        raise ConfigError("requeue: --run goes with --all-dead.")
    raise_if_absent(store)
    typer.echo(asyncio.run(_requeued(store, rollouts or [], run_id, attempts)))


async def _pruned(url: str, retention: Retention, as_json: bool) -> str:
    async with connect(url) as store:
        pruned = await store.prune(retention)
    if as_json:
        return json.dumps(asdict(pruned))
    return f"removed {_counts(pruned)}; the store had {size_text(pruned.bytes_before)}, now {size_text(pruned.bytes_after)}"


async def _would_prune(url: str, retention: Retention, as_json: bool) -> str:
    now = now_ns()
    async with connect(url) as store:
        size = int((await store.statistics())["bytes"])
        too_old = removable = 0
        async for rollout in _rollouts(store):
            if rollout.finished_ns is None or not rollout.state.terminal or rollout.mode in retention.keep_modes:
                continue
            removable += 1
            age = (now - rollout.finished_ns) / 1e9
            too_old += retention.max_age_seconds is not None and age > retention.max_age_seconds
    over = 0 if retention.max_bytes is None else max(0, size - retention.max_bytes)
    if as_json:
        return json.dumps({"too_old": too_old, "removable": removable, "bytes": size, "bytes_over": over})
    lines = [f"would remove {too_old:,} rollouts for their age, of {removable:,} that may be removed"]
    if retention.max_bytes is not None:
        lines.append(
            f"the store has {size_text(size)}, {size_text(over)} too much: what ended first goes until it fits"
            if over
            else f"the store has {size_text(size)}, which fits"
        )
    return "\n".join(lines)


async def _listed(url: str, run_id: str | None, limit: int, as_json: bool) -> str:
    latest: deque[Rollout] = deque(maxlen=limit)
    total = 0
    async with connect(url) as store:
        async for rollout in _rollouts(store, RolloutState.DEAD, run_id):
            latest.append(rollout)
            total += 1
        attempts = await store.get_attempts([rollout.id for rollout in latest])
    found = [(rollout, len(attempts[rollout.id])) for rollout in reversed(latest)]
    if as_json:
        rows: list[dict[str, Any]] = [asdict(rollout) | {"attempts": count} for rollout, count in found]
        return json.dumps(rows, ensure_ascii=False, indent=2, default=str)
    if not found:
        return "No dead rollouts."
    lines = [_row(rollout, count) for rollout, count in found]
    if total > len(found):
        lines.append(f"… and {total - len(found):,} earlier ones; --limit shows more.")
    return "\n".join(lines)


async def _requeued(url: str, ids: Sequence[str], run_id: str | None, attempts: int) -> str:
    async with connect(url) as store:
        if not ids:
            ids = [rollout.id async for rollout in _rollouts(store, RolloutState.DEAD, run_id)]
        for start in range(0, len(ids), PAGE):
            await store.requeue(ids[start : start + PAGE], attempts=attempts)
    return f"{len(ids):,} rollouts are back in the queue" if len(ids) != 1 else f"{ids[0]} is back in the queue"


async def _rollouts(
    store: Store, state: RolloutState | None = None, run_id: str | None = None
) -> AsyncIterator[Rollout]:
    after: str | None = None
    while True:
        page = await store.list_rollouts(state=state, run_id=run_id, after=after, limit=PAGE)
        for rollout in page.items:
            yield rollout
        after = page.cursor
        if after is None:
            return


def _row(rollout: Rollout, attempts: int) -> str:
    ended = datetime.fromtimestamp((rollout.finished_ns or 0) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{rollout.id}  {ended}  {rollout.mode.value:<10}  {attempts} attempts  {rollout.reason or ''}"


def _counts(pruned: Pruned) -> str:
    return f"{pruned.rollouts:,} rollouts, {pruned.attempts:,} attempts, {pruned.spans:,} spans, {pruned.rewards:,} rewards"
