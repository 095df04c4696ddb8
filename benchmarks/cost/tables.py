"""The tables of ``docs/overhead.md``, from the JSON files that ``overhead.py`` wrote: a framework's figures are the last
file's that has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cost.instrumentors import ATTEMPT, COTERIE, NOTHING, NOTHING_AGAIN, PEERS

FRAMEWORKS = {
    "openai": "OpenAI SDK alone",
    "langchain": "LangChain/LangGraph",
    "openai_sdk": "OpenAI Agents SDK",
    "autogen": "AutoGen",
    "crewai": "CrewAI",
}
SERVERS = {"plain": "ordinary server", "token ids": "server that gives token ids and log-probs"}
COMPARED = (NOTHING_AGAIN, COTERIE, ATTEMPT, *PEERS)


def tables(files: Sequence[Path]) -> str:
    """All tables, as markdown."""
    figures: dict[str, Any] = {}
    for file in files:
        figures |= json.loads(file.read_text())["figures"]
    figures = {name: figures[name] for name in FRAMEWORKS if name in figures}
    return "\n\n".join(
        f"### {heading}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)
        for heading, rows in _tables(figures)
    )


def _tables(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[Sequence[str]]]]:
    for per in ("LLM call", "agent step"):
        for server, words in SERVERS.items():
            columns = ["framework", "uninstrumented", *COMPARED]
            yield f"Per {per}, {words}", [*_head(columns), *_costs(figures, per, server)]
    held = [
        [FRAMEWORKS[framework], name, *map(str, found.values())]
        for framework, about in figures.items()
        for name, found in about["records"].items()
        if name not in (NOTHING, NOTHING_AGAIN)
    ]
    columns = list(next(found for about in figures.values() for found in about["records"].values()))
    yield "What their spans hold", [*_head(["framework", "instrumentor", *columns]), *held]
    columns = ["CPU ms, first tenth", "CPU ms, last tenth", "kB of memory per 1,000 calls", "objects per 1,000 calls"]
    yield "Long runs", [*_head(["framework", "instrumentor", "calls", *columns]), *_long_runs(figures)]


def _head(columns: Sequence[str]) -> list[Sequence[str]]:
    return [columns, ["---"] * len(columns)]


def _costs(figures: Mapping[str, Any], per: str, server: str) -> Iterator[Sequence[str]]:
    for framework, about in figures.items():
        rows = {row["instrumentor"]: row for row in about["cost"] if (row["per"], row["server"]) == (per, server)}
        if rows:
            cells = (_added(rows[name]) if name in rows else "–" for name in COMPARED)
            yield [FRAMEWORKS[framework], f"{rows[NOTHING]['cpu_ms']:.1f}", *cells]


def _added(row: Mapping[str, Any]) -> str:
    low, high = row["added_cpu_ms_interval_95"]
    return f"{row['added_cpu_ms']:+.2f} ({low:+.2f} to {high:+.2f})"


def _long_runs(figures: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for framework, about in figures.items():
        for name, grown in about["long"].items():
            if name != NOTHING_AGAIN:
                yield [
                    FRAMEWORKS[framework],
                    name,
                    str(grown["calls"]),
                    f"{grown['cpu_ms_first_tenth']:.2f}",
                    f"{grown['cpu_ms_last_tenth']:.2f}",
                    f"{grown['rss_kb_per_1000_calls']:,.0f}",
                    f"{grown['objects_per_1000_calls']:,.0f}",
                ]
