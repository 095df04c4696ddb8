"""All sinks of a run: checked before anything starts, opened before the first step, fed with each step's figures."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from coterie.errors import ConfigError
from coterie_trainers.progress import Progress
from coterie_trainers.sinks.outlet import Outlet
from coterie_trainers.sinks.sink import RunFacts, Sink

SINKS = {
    "tensorboard": "TensorBoardSink",
    "wandb": "WandbSink",
    "mlflow": "MlflowSink",
    "trackio": "TrackioSink",
}
"""Name in the configuration, which is that of the library too → class in ``to_<name>.py``."""
OPEN_SECONDS = 120.0
"""How long a sink may take to open."""
CLOSE_SECONDS = 30.0
"""How long a sink may take to write what is left."""


class Sinks:
    """The open sinks of a run; none is a run without them."""

    def __init__(self, outlets: Sequence[Outlet] = (), progress: Progress | None = None) -> None:
        self._outlets = list(outlets)
        self._progress = progress

    def write(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Give the figures of a step to all, named ``<stage>/<figure>``; what is no number is left out. Never blocks."""
        named = {f"{stage}/{name}": float(value) for name, value in figures.items() if isinstance(value, int | float)}
        self._drop_failed()
        for outlet in self._outlets:
            outlet.write(step, named)

    async def close(self) -> None:
        """Let all write what is left, and close them."""
        self._drop_failed()
        await asyncio.gather(*(asyncio.to_thread(outlet.close, CLOSE_SECONDS) for outlet in self._outlets))
        self._drop_failed()
        self._outlets = []

    def _drop_failed(self) -> None:
        """Say of each sink that failed that it did, once, and go on without it."""
        for outlet in [each for each in self._outlets if each.failure is not None]:
            self._outlets.remove(outlet)
            if self._progress is not None:
                error = outlet.failure
                self._progress.warn(
                    f"metrics: {outlet.name} failed ({type(error).__name__}: {error}). The run goes on without it; "
                    "the store has all figures."
                )


def check_sinks(names: Sequence[str]) -> None:
    """Make sure that the library of each sink is installed, without importing it.

    Raises:
        ConfigError: names the first that is missing, and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'metrics: {name!r} needs the package {name}, which is not installed. Do: pip install "coterie[{name}]"'
            )


async def open_sinks(names: Sequence[str], facts: RunFacts, progress: Progress) -> Sinks:
    """Open these sinks, all at once.

    Raises:
        ConfigError: one cannot be opened, for want of an account or a server for instance.
    """
    outlets = [Outlet(name, partial(_open, name), facts) for name in names]
    for outlet in outlets:
        try:
            await asyncio.wait_for(asyncio.wrap_future(outlet.opened), OPEN_SECONDS)
        except TimeoutError:
            raise ConfigError(
                f"metrics: {outlet.name} did not open within {OPEN_SECONDS:g} s. Is its server there? Leave it out of 'metrics' "
                "to train without it."
            ) from None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            raise ConfigError(f"metrics: {outlet.name} cannot be opened: {type(error).__name__}: {error}") from error
    return Sinks(outlets, progress)


def _open(name: str, facts: RunFacts) -> Sink:
    module = importlib.import_module(f"coterie_trainers.sinks.to_{name}")
    sink: Sink = getattr(module, SINKS[name])(facts)
    return sink
