"""Measures one suite on one store, in a process of its own: ``python -m stores.worker BACKEND SUITE SIZES FOLDER``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from stores.operations import SUITES, Backend, Sizes


def backend(name: str, folder: Path) -> Backend:
    """``coterie:sqlite`` and the like; each is imported only in the environment that has it."""
    owner, _, kind = name.partition(":")
    if owner == "coterie":
        from stores.ours import Coterie

        return Coterie(kind, folder)
    from stores.peer import Agentlightning

    return Agentlightning(kind)


async def measure(name: str, suite: str, sizes: Sizes, folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}

    def report(what: str, **figures: float) -> None:
        found[what] = figures
        print(f"  {name:20s} {what:45s} {figures}", file=sys.stderr, flush=True)

    store = backend(name, folder)
    await store.open()
    try:
        await SUITES[suite](store, sizes, report)
    finally:
        await store.close()
    return found


if __name__ == "__main__":
    _, name, suite, sizes, folder = sys.argv
    print(json.dumps(asyncio.run(measure(name, suite, Sizes(**json.loads(sizes)), Path(folder)))))
