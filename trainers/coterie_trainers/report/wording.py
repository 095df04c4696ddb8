"""Figures in words: the same on the terminal and on the page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from coterie.vocabulary import RunState
from coterie_trainers.intervals import Interval
from coterie_trainers.report.figures import GREEDY, SAMPLED, Figures

DECODING_NAMES = {SAMPLED: "sampled, as the team runs", GREEDY: "greedy"}
NOTHING = "–"
"""Shown for what was not measured."""
FINE_MISMATCH = 0.01
"""Log-probabilities of rollout and trainer that differ by less are the same policy for all purposes."""


def headline(figures: Figures) -> str:
    """The result in a sentence."""
    measured = figures.decodings[SAMPLED]
    steps = figures.costs.steps
    if measured.before and measured.after:
        return (
            f"Success went from {percent(measured.before.value)} to {percent(measured.after.value)} "
            f"in {counted(steps, 'step')} ({minutes(figures.costs.train_seconds)} of training)."
        )
    standing = {
        RunState.RUNNING: "The run goes on, or was cut off",
        RunState.STOPPED: "The run was stopped",
        RunState.FAILED: "The run failed",
        RunState.SUCCEEDED: "The run has ended",
    }[figures.run.state]
    last = f"; success in the last step {percent(figures.curve.train[-1].success)}" if figures.curve.train else ""
    return f"{standing} after {counted(steps, 'step')}{last}."


def health_lines(figures: Figures) -> Iterator[tuple[bool, str]]:
    """What is well and what is not: (well, sentence)."""
    health = figures.health
    if health.max_mismatch is not None:
        fine = health.max_mismatch <= FINE_MISMATCH
        kl = "" if health.max_mismatch_kl is None else f", k3 estimate at most {health.max_mismatch_kl:.1e}"
        yield fine, f"rollout against trainer: log-probabilities differ by at most {health.max_mismatch:.1e}{kl}"
    if health.max_staleness:
        versions = counted(health.max_staleness, "policy version")
        yield True, f"asynchronous collection: turns were at most {versions} old when they were trained on"
    missing = health.trainable_calls_missing
    yield (
        missing == 0,
        "every training call came with token ids and log-probabilities"
        if not missing
        else (f"{counted(missing, 'training call')} came without token ids or log-probabilities and taught nothing"),
    )
    failed = sum(health.failed_attempts.values())
    if failed:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in health.failed_attempts.items())
        yield False, f"{counted(failed, 'attempt')} failed: {causes}"
        for error in health.failures:
            yield False, f"for example: {shortened(error, 160)}"
    else:
        yield True, "no attempt failed"
    for warning, count in health.warnings.items():
        yield False, f"{count:,} × {shortened(warning, 200)}"
    if health.steps_without_rows:
        yield (
            False,
            f"{counted(health.steps_without_rows, 'step')} had nothing to learn from: every reward of a group was equal",
        )
    for word in health.guard:
        yield False, f"guard ({word.about}): {word.reason}; at {counted(word.steps, 'step')}, last at step {word.step}"
    for decision in figures.decisions:
        if decision.kind in ("stopped", "rolled_back"):
            yield False, f"{decision.kind.replace('_', ' ')}: {decision.evidence.get('reason', decision.subject)}"


def cost_lines(figures: Figures) -> Sequence[str]:
    """What the run took."""
    costs = figures.costs
    parts = ", ".join(f"{part} {minutes(seconds)}" for part, seconds in costs.seconds_by_part.items())
    rollouts = ", ".join(f"{mode} {count:,}" for mode, count in sorted(costs.rollouts.items()))
    calls = ", ".join(f"{role} {count:,}" for role, count in costs.calls_by_role.items())
    return [
        f"training {minutes(costs.train_seconds)}, {counted(costs.steps, 'step')}{f' ({parts})' if parts else ''}; "
        f"whole run {minutes(costs.wall_seconds)}",
        f"rollouts {sum(costs.rollouts.values()):,}{f' ({rollouts})' if rollouts else ''}",
        f"calls {sum(costs.calls_by_role.values()):,}{f' ({calls})' if calls else ''}",
        f"tokens trained {costs.trained_tokens:,}",
    ]


def percent(share: float | None) -> str:
    """``71.2 %``."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def percent_interval(interval: Interval | None) -> str:
    """``71.2 % [66.0, 76.1]``."""
    if interval is None:
        return NOTHING
    return f"{percent(interval.value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points_interval(interval: Interval | None) -> str:
    """A difference in percentage points: ``+40.1 [35.0, 45.2]``."""
    if interval is None:
        return NOTHING
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def number(value: float | None) -> str:
    """``0.712``."""
    return NOTHING if value is None else f"{value:.3g}"


def minutes(seconds: float) -> str:
    """``45.1 s``, ``5 min 12 s``, ``2 h 03 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, thing: str) -> str:
    """``1 step``, ``1,200 steps``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def visible(text: str, *, lines: int | None = None) -> str:
    """Text that cannot steer a terminal: control characters become visible; more than ``lines`` lines are cut."""
    shown = "".join(_seen(character) for character in text)
    if lines is not None and shown.count("\n") >= lines:
        shown = "\n".join([*shown.split("\n")[: lines - 1], "…"])
    return shown


def shortened(text: str, length: int) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _seen(character: str) -> str:
    if character in "\n\t":
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character != "\u200d" else character
