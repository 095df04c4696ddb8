"""The report of a tuning run for machines: one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from coterie.vocabulary import JSON
from coterie_trainers.intervals import Interval
from coterie_trainers.report.places import Places
from coterie_trainers.report.tuning.figures import PromptChange, TuningFigures


def tuning_as_json(figures: TuningFigures, places: Places) -> Mapping[str, JSON]:
    """What the report says, as values that ``json.dumps`` accepts; None for what was not measured."""
    return {
        "run": figures.run.id,
        "name": figures.run.name,
        "kind": figures.run.kind,
        "state": figures.run.state.value,
        "seed": figures.run.config.get("seed"),
        "optimiser": figures.optimiser,
        "taken": figures.taken,
        "reason": figures.reason,
        **_measured("test_before", figures.test_before),
        **_measured("test_after", figures.test_after),
        **_measured("test_gain", figures.test_gain),
        **_measured("val_gain", figures.val_gain),
        "prompts": {change.name: _prompt(change) for change in figures.prompts},
        "roles": {
            each.role: {
                **_measured("before", each.before),
                **_measured("after", each.after),
                **_measured("gain", each.gain),
            }
            for each in figures.roles
        },
        "candidates": [asdict(candidate) for candidate in figures.candidates],
        "budget": dict(figures.limits),
        "spent": dict(figures.spent),
        "reflections_by_purpose": dict(figures.reflections),
        "rollouts_by_split": dict(figures.rollouts),
        "flags": None if figures.flags is None else list(figures.flags),
        "failed_attempts": dict(figures.failed),
        "warnings": dict(figures.warnings),
        "decisions": [
            {"kind": each.kind, "subject": each.subject, "evidence": each.evidence} for each in figures.decisions
        ],
        "paths": {
            "store": places.store,
            "work": None if places.work is None else str(places.work),
            "report": None if places.page is None else str(places.page),
        },
    }


def _prompt(change: PromptChange) -> Mapping[str, JSON]:
    return {
        "role": change.role,
        "part": change.part,
        "version_before": change.before.version,
        "version_after": change.after.version,
        "before": change.before.content["text"],
        "after": change.after.content["text"],
        "diff": list(change.diff),
        "why": change.why,
        "author": change.after.author,
        "status": change.after.status.value,
    }


def _measured(name: str, interval: Interval | None) -> Mapping[str, JSON]:
    return {
        name: None if interval is None else interval.value,
        f"{name}_interval": None if interval is None else [interval.low, interval.high],
    }
