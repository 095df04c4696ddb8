"""The result of a finished run: each prompt before and after, why it was changed, what the winner gains, and what it cost."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from coterie.store.base import Store
from coterie.vocabulary import JSON, Run
from coterie_trainers.prompts.budget import told


async def read_result(store: Store, run: Run) -> dict[str, JSON]:
    """A finished run's summary, with the texts of its prompts before and after, as JSON."""
    prompts: dict[str, JSON] = {}
    for name, one in run.summary["prompts"].items():
        seed, winner = await store.get_resource(name, one["seed"]), await store.get_resource(name, one["winner"])
        prompts[name] = {**one, "before": seed.content["text"], "after": winner.content["text"]}
    return {"run": run.id, **run.summary, "prompts": prompts}


def shown(result: Mapping[str, Any]) -> str:
    """The result for people."""
    lines: list[str] = []
    for name, one in result["prompts"].items():
        if one["before"] == one["after"]:
            lines.append(f"{name}: as it was")
            continue
        gain = f", adds {_interval(one['gain'], sign='+')} on validation" if one.get("gain") else ""
        lines.append(f"{name}: version {one['seed']} → {one['winner']}{gain}{_why(one['why'])}")
        difference = difflib.unified_diff(one["before"].splitlines(), one["after"].splitlines(), lineterm="", n=1)
        lines += [f"    {line}" for line in list(difference)[2:]]
    lines.append(f"held-out test: before {_interval(result['test_before'])}, after {_interval(result['test_after'])}")
    if result["test_gain"] is not None:
        lines.append(f"gain on test: {_interval(result['test_gain'], sign='+')}")
    lines += [f"flagged: {flag}" for flag in result["flags"].get(result["winner"], [])]
    lines.append(f"{'taken' if result['taken'] else 'not taken'}: {result['reason']}")
    lines.append(f"spent: {told(result['spent'])}")
    return "\n".join(lines)


def _why(why: str) -> str:
    said = (line.strip() for line in why.splitlines())
    first = next((line for line in said if line and not line.startswith("```")), "")
    return f", since {first[:200]}" if first else ""


def _interval(interval: Mapping[str, Any] | None, sign: str = "") -> str:
    if interval is None:
        return "not measured"
    return f"{interval['value']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"
