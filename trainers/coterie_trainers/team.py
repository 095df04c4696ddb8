"""Loading the rollout function that is to be trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from coterie.apps import load_app
from coterie.rollouts import RolloutFunction

NO_KEY = "none: calls go to the policy's endpoint"
"""Stands in for a key of OpenAI's where the user has none."""


def load_team(spec: str, *, folder: Path) -> RolloutFunction[..., Any]:
    """The rollout function ``spec`` (``app.py:team``), looked for from ``folder``.

    Raises:
        ConfigError: it does not load, or is no rollout function.
    """
    let_clients_be_made()
    return load_app(spec, folder=folder)


def let_clients_be_made() -> None:
    """Give ``OPENAI_API_KEY`` a text that is no key where none is set.

    A team's agents call the policies' endpoints while they train, but many clients refuse to be made without a key, in the
    team's own modules, which ``prepare`` may import too.
    """
    os.environ.setdefault("OPENAI_API_KEY", NO_KEY)
