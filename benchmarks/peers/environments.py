"""Environments of the peers, whose pins contradict ours: each has its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def peer_python(benchmark: str, given: str | None) -> str | None:
    """The Python that a benchmark's peer runs with: the one given, none for ``none``.

    Otherwise that of an environment which is made, if need be, from ``requirements/bench-<benchmark>-peer.txt``.
    """
    if given == "none":
        return None
    if given is not None:
        return given
    home = ROOT / ".nox" / f"bench-{benchmark}-peer"
    python = home / "bin" / "python"
    pins = ROOT / "requirements" / f"bench-{benchmark}-peer.txt"
    mark = home / "pins.txt"
    if not mark.exists() or mark.read_text() != pins.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(pins)], check=True)
        mark.write_text(pins.read_text())
    return str(python)
