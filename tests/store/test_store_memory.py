"""A process that takes spans for a long time does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SPANS = 12_000
"""About 36 MB, more than the store keeps in memory of its file."""
BYTES_PER_SPAN = 300
"""A span has 3 kB. What an allocator keeps for a while counts, too."""

PROGRAM = f"""
import asyncio, resource, sys
import coterie
from coterie.vocabulary import Span

TEXT = "x" * 2800

async def main():
    async with coterie.connect(sys.argv[1]) as store:
        async def take(first):
            for number in range(first, first + {SPANS}, 100):
                await store.add_spans(
                    [Span(f"{{n // 10:032x}}", f"{{n:016x}}", "chat", n, n, attempt_id=f"at-{{n // 10}}",
                          attributes={{"text": TEXT}}) for n in range(number, number + 100)]
                )
        await take(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await take({SPANS})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "flat.db")]
    grown_kb = int(subprocess.run(command, capture_output=True, check=True, timeout=100, text=True).stdout)
    assert grown_kb * 1024 / SPANS < BYTES_PER_SPAN
