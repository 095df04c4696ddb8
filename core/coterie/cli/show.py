"""``coterie show``: a rollout's episode as a tree, or the rollouts that were made last."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from coterie.assembly import build_episode
from coterie.cli.given_store import raise_if_absent
from coterie.connecting import connect
from coterie.episodes import Episode
from coterie.store.base import Store
from coterie.vocabulary import Attempt, AttemptState, Rollout, Task

PAGE = 1000
"""Rollouts that are read at once."""
INPUT_LIMIT = 60
"""Characters of a task's input in the list."""


def show(
    store: Annotated[
        str, typer.Option(metavar="URL", envvar="COTERIE_STORE", help="The store: a path, or sqlite:///runs.db.")
    ],
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="The rollout's id. Left out: list those made last.")
    ] = None,
    attempt: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Which attempt; by default the one that succeeded, else the last."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many rollouts to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Show a rollout's episode as a tree: who said what, tools, hand-offs, rewards. Without an id: the latest rollouts."""
    raise_if_absent(store)
    typer.echo(asyncio.run(_shown(store, rollout, attempt, limit, as_json)))


async def _shown(url: str, rollout_id: str | None, number: int | None, limit: int, as_json: bool) -> str:
    async with connect(url) as store:
        if rollout_id is None:
            return await _listed(store, limit, as_json)
        return await _one(store, rollout_id, number, as_json)


async def _one(store: Store, rollout_id: str, number: int | None, as_json: bool) -> str:
    (rollout,) = await store.get_rollouts([rollout_id])
    attempts = (await store.get_attempts([rollout_id])).get(rollout_id, ())
    attempt = _chosen(attempts, rollout, number)
    episode = await _episode(store, rollout, attempt) if attempt is not None else None
    if as_json:
        found: dict[str, Any] = {"rollout": asdict(rollout), "attempt": attempt and asdict(attempt)}
        return _json(found | {"episode": episode and asdict(episode)})
    if attempt is None or episode is None:
        return f"rollout {rollout.id} is {rollout.state.value}; no attempt at it was made yet."
    lines = [
        f"{rollout.mode.value} rollout, {rollout.state.value}; attempt {attempt.number} of {len(attempts)} {attempt.state.value}"
    ]
    if rollout.reason:
        lines.append(f"reason: {rollout.reason}")
    lines += [f"error: {line}" for line in (attempt.error or "").splitlines()[:1]]
    lines += [f"warning: {warning}" for warning in attempt.warnings]
    return "\n".join([*lines, episode.tree()])


def _chosen(attempts: Sequence[Attempt], rollout: Rollout, number: int | None) -> Attempt | None:
    if number is None:
        good = [attempt for attempt in attempts if attempt.state is AttemptState.SUCCEEDED]
        return good[-1] if good else attempts[-1] if attempts else None
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    there_are = f"attempts 1 to {len(attempts)}" if attempts else "none yet"
    raise typer.BadParameter(f"rollout {rollout.id} has no attempt {number}; there are: {there_are}.")


async def _episode(store: Store, rollout: Rollout, attempt: Attempt) -> Episode:
    spans = (await store.get_spans([attempt.id])).get(attempt.id, ())
    rewards = (await store.get_rewards([attempt.id])).get(attempt.id, ())
    return build_episode(rollout.task_id, attempt.id, rollout.id, spans, rewards)


async def _listed(store: Store, limit: int, as_json: bool) -> str:
    latest: deque[Rollout] = deque(maxlen=limit)
    after: str | None = None
    while True:
        page = await store.list_rollouts(after=after, limit=PAGE)
        latest.extend(page.items)
        after = page.cursor
        if after is None:
            break
    rollouts = list(reversed(latest))
    if as_json:
        return _json([asdict(rollout) for rollout in rollouts])
    if not rollouts:
        return "No rollouts in this store."
    tasks = {task.id: task for task in await store.get_tasks(list({rollout.task_id for rollout in rollouts}))}
    return "\n".join(_row(rollout, tasks[rollout.task_id]) for rollout in rollouts)


def _row(rollout: Rollout, task: Task) -> str:
    created = datetime.fromtimestamp(rollout.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    given = task.input if isinstance(task.input, str) else json.dumps(task.input, ensure_ascii=False)
    words = " ".join(given.split())
    shown = words if len(words) <= INPUT_LIMIT else words[: INPUT_LIMIT - 1] + "…"
    return f"{rollout.id}  {created}  {rollout.mode.value:<10}  {rollout.state.value:<9}  {shown}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
