"""Measures what ``pip install coterie`` alone costs and fails when it exceeds its limits. Run by ``nox -s base``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

TOOLS = {"pip", "setuptools", "wheel"}
LIMITS = {"packages": 30, "disk_mb": 60.0, "import_seconds": 0.3, "resident_mb": 60.0}
PROBE = (
    "import time; start = time.perf_counter(); import coterie; coterie.reward, coterie.rollout, coterie.agent; "
    "seconds = time.perf_counter() - start; import resource; "
    "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
)


def measure() -> dict[str, float]:
    """Packages and megabytes in this environment without pip itself, seconds and megabytes of ``import coterie``.

    ``disk_mb`` counts the files that the packages bring; the bytecode that pip compiles from them is given beside it.
    """
    installed = {each.name.lower(): each for each in distributions() if each.name.lower() not in TOOLS}
    files = [
        path
        for each in installed.values()
        for path in (Path(str(file.locate())) for file in each.files or ())
        if path.is_file()
    ]
    size = sum(path.stat().st_size for path in files if path.suffix != ".pyc")
    bytecode = sum(path.stat().st_size for path in files if path.suffix == ".pyc")
    subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True)
    runs = [subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True) for _ in range(5)]
    seconds, resident = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {
        "packages": len(installed),
        "disk_mb": round(size / 1e6, 1),
        "bytecode_mb": round(bytecode / 1e6, 1),
        "import_seconds": round(statistics.median(seconds), 3),
        "resident_mb": round(statistics.median(resident), 1),
    }


if __name__ == "__main__":
    figures = measure()
    print(json.dumps(figures))
    too_much = {name: value for name, value in figures.items() if value > LIMITS.get(name, value)}
    if too_much:
        raise SystemExit(f"Over the limit: {too_much}; the limits are {LIMITS}")
