"""The report for machines: one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from coterie.vocabulary import JSON
from coterie_trainers.intervals import Interval
from coterie_trainers.report.audits import audit_as_json
from coterie_trainers.report.figures import GREEDY, SAMPLED, Figures
from coterie_trainers.report.places import Places


def as_json(figures: Figures, places: Places) -> Mapping[str, JSON]:
    """What the report says, as values that ``json.dumps`` accepts; None for what was not measured."""
    health, costs = figures.health, figures.costs
    return {
        "run": figures.run.id,
        "name": figures.run.name,
        "state": figures.run.state.value,
        "seed": figures.run.config.get("seed"),
        **_success("success", figures, SAMPLED),
        **_success("greedy", figures, GREEDY),
        "train_seconds": round(costs.train_seconds, 3),
        "wall_seconds": round(costs.wall_seconds, 3),
        "seconds_by_part": {part: round(seconds, 3) for part, seconds in costs.seconds_by_part.items()},
        "steps": costs.steps,
        "max_logprob_mismatch": health.max_mismatch,
        "max_mismatch_kl": health.max_mismatch_kl,
        "max_staleness": health.max_staleness,
        "rollouts": sum(costs.rollouts.values()),
        "rollouts_by_mode": dict(costs.rollouts),
        "calls_by_role": dict(costs.calls_by_role),
        "trained_tokens": costs.trained_tokens,
        "trainable_calls_missing": health.trainable_calls_missing,
        "failed_attempts": dict(health.failed_attempts),
        "warnings": dict(health.warnings),
        "guard": [asdict(word) for word in health.guard],
        "by_family": {
            family.family: {"n": family.tasks, "before": family.before, "after": family.after}
            for family in figures.families
        },
        "by_role": {
            role.role: {key: value for key, value in asdict(role).items() if key != "role"} for role in figures.roles
        },
        "curve": {
            "train": [asdict(point) for point in figures.curve.train],
            "val": [asdict(point) for point in figures.curve.val],
        },
        "audits": [audit_as_json(audit) for audit in figures.audits],
        "paths": {
            "store": places.store,
            "work": _text(places.work),
            "report": _text(places.page),
            "checkpoints": _text(places.checkpoints),
            "models": {model.policy: model.path for model in figures.models},
        },
    }


def _success(name: str, figures: Figures, decoding: str) -> Mapping[str, JSON]:
    measured = figures.decodings[decoding]
    return {
        f"{name}_before": _value(measured.before),
        f"{name}_before_interval": _ends(measured.before),
        f"{name}_after": _value(measured.after),
        f"{name}_after_interval": _ends(measured.after),
        f"{name}_difference": _value(measured.difference),
        f"{name}_difference_interval": _ends(measured.difference),
    }


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _ends(interval: Interval | None) -> Sequence[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _text(path: object | None) -> str | None:
    return None if path is None else str(path)
