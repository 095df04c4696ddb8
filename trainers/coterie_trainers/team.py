"""Loading the rollout function that is to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.apps import let_clients_be_made, load_app
from coterie.rollouts import RolloutFunction


def load_team(spec: str, *, folder: Path) -> RolloutFunction[..., Any]:
    """The rollout function ``spec`` (``app.py:team``), looked for from ``folder``.

    Raises:
        ConfigError: it does not load, or is no rollout function.
    """
    let_clients_be_made()
    return load_app(spec, folder=folder)
