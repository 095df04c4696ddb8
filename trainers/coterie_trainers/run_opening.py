"""Opening a run: a new one, or the one that the work folder holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.vocabulary import Run, RunState, new_id
from coterie_trainers.workspace import Workspace


class NamedConfig(Protocol):
    """A configuration of a run: a pydantic model with a name."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All settings, as JSON."""
        ...


MAY_CHANGE = ("guard", "metrics")
"""Settings that a training run may go on with others of: nothing that is learnt depends on them."""


async def open_run(
    store: Store,
    workspace: Workspace,
    config: NamedConfig,
    app_spec: str,
    *,
    kind: str = "train",
    may_change: Collection[str] = MAY_CHANGE,
) -> tuple[Run, bool]:
    """The run to go on with, and whether it had begun before. The folder knows its run: a store may hold many.

    Args:
        store: Where runs are.
        workspace: The work folder.
        config: The run's settings.
        app_spec: The rollout function.
        kind: ``train`` or ``optimize``.
        may_change: Settings that it may go on with others of.

    Raises:
        ConfigError: the folder's run was made with other settings.
    """
    settings = {"app": app_spec, **config.model_dump(mode="json")}
    run_id = workspace.run_id()
    if run_id is None:
        run = Run(new_id("run"), kind, config.name, settings)
        await store.save_run(run)
        workspace.remember_run(run.id)
        return run, False
    run = await store.get_run(run_id)
    changed = [key for key in _differences(settings, run.config) if key.partition(".")[0] not in may_change]
    if changed:
        raise ConfigError(
            f"The work folder holds run {run.id}, which was made with other settings for: {', '.join(changed)}. "
            "Use the same settings to resume it, --fresh to start anew, or another --out."
        )
    if run.state is not RunState.SUCCEEDED:
        run = replace(run, state=RunState.RUNNING, finished_ns=None)
        await store.save_run(run)
    return run, True


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The keys, such as ``training.steps``, whose values differ."""
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{above}{key}.")
        elif one != other:
            yield f"{above}{key}"
