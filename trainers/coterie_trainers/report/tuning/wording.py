"""The figures of a tuning run in words: the same on the terminal and on the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from coterie.vocabulary import RunState
from coterie_trainers.intervals import Interval
from coterie_trainers.report.places import Places
from coterie_trainers.report.tuning.figures import SPLITS, CandidateFigures, PromptChange, TuningFigures
from coterie_trainers.report.wording import NOTHING, counted, shortened

UNITS = {
    "rollouts": "rollouts",
    "calls": "LLM calls",
    "reflections": "of them reflections",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "tokens": "tokens in and out",
    "money": "money",
    "seconds": "seconds",
}
"""What is spent → what it is called."""
CANDIDATE_HEADS = ("candidate", "by", *(f"{split} (rollouts)" for split in SPLITS), "")


def headline(figures: TuningFigures) -> str:
    """The result in a sentence."""
    if figures.taken is None:
        standing = {
            RunState.RUNNING: "The search goes on, or was cut off",
            RunState.STOPPED: "The search was stopped",
            RunState.FAILED: "The search failed",
            RunState.SUCCEEDED: "The search has ended",
        }[figures.run.state]
        return f"{standing} after {counted(sum(figures.rollouts.values()), 'rollout')}."
    if figures.taken and figures.test_before and figures.test_after:
        return (
            f"The score on the held-out test went from {figures.test_before.value:.3f} to "
            f"{figures.test_after.value:.3f}: the winner was taken."
        )
    return f"{'The winner was taken' if figures.taken else 'The prompts stay as they are'}: {figures.reason}."


def score_rows(figures: TuningFigures) -> Sequence[tuple[str, str, str, str, str]]:
    """The team's score on test, then each role's own rewards there: before, after, gain, tasks."""
    rows = []
    if figures.test_before is not None:
        tasks = figures.test_gain or figures.test_before
        rows.append(
            (
                "the team",
                interval_text(figures.test_before),
                interval_text(figures.test_after),
                interval_text(figures.test_gain, sign="+"),
                str(tasks.tasks),
            )
        )
    rows += [
        (
            f"{each.role}'s own rewards",
            interval_text(each.before),
            interval_text(each.after),
            interval_text(each.gain, sign="+"),
            str(each.gain.tasks),
        )
        for each in figures.roles
    ]
    return rows


def score_note(figures: TuningFigures) -> str:
    """How to read the scores."""
    level = f"{figures.test_before.level:.0%}" if figures.test_before else "95%"
    changed = [one.name for one in figures.prompts if one.changed]
    together = (
        f" The {len(changed)} changed prompts were measured together: the gain is theirs in common."
        if len(changed) > 1
        else ""
    )
    chosen = (
        f" On validation, where the winner was chosen and which flatters it: {interval_text(figures.val_gain, sign='+')}."
        if figures.val_gain
        else ""
    )
    return f"{level} bootstrap intervals over tasks, the gain paired on the same tasks and seeds.{together}{chosen}"


def change_title(change: PromptChange) -> str:
    """Which prompt, and from which version to which."""
    whose = f"{change.name} ({change.role}, {change.part})"
    if not change.changed:
        return f"{whose}: version {change.before.version}, as it was"
    return f"{whose}: version {change.before.version} → {change.after.version}, {change.after.status}"


def change_facts(change: PromptChange) -> str:
    """Who changed it, and how much."""
    before, after = [len(str(each.content["text"])) for each in (change.before, change.after)]
    return f"by {change.after.author}, {before:,} → {after:,} characters"


def candidate_row(candidate: CandidateFigures) -> Sequence[str]:
    """The cells of a candidate, as ``CANDIDATE_HEADS`` has them."""
    measured = [
        f"{candidate.means[split]:.3f} ({candidate.rollouts[split]})" if split in candidate.means else NOTHING
        for split in SPLITS
    ]
    return [candidate.id, candidate.author, *measured, shortened(candidate.fate, 100)]


def spent_lines(figures: TuningFigures) -> Iterator[str]:
    """What was spent, of how much."""
    spent = dict(figures.spent)
    if "tokens" in figures.limits:
        spent["tokens"] = spent.pop("input_tokens", 0) + spent.pop("output_tokens", 0)
    for name, unit in UNITS.items():
        if name in spent and (spent[name] or name in figures.limits):
            of = f" of {figures.limits[name]:,g}" if name in figures.limits else ""
            used = f"{spent[name]:,}" if isinstance(spent[name], int) else f"{spent[name]:,.4g}"
            yield f"{used}{of} {unit}"
    if figures.reflections:
        yield "asked of the reflecting model: " + ", ".join(
            f"{purpose} {count:,}" for purpose, count in figures.reflections.items()
        )
    by_split = ", ".join(f"{split} {count:,}" for split, count in sorted(figures.rollouts.items()))
    yield f"rollouts that ended, by split: {by_split or 'none'}"


def health_lines(figures: TuningFigures) -> Iterator[tuple[bool, str]]:
    """What is well and what is not: (well, sentence)."""
    for flag in figures.flags or ():
        yield False, flag
    failed = sum(figures.failed.values())
    if failed:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in figures.failed.items())
        yield False, f"{counted(failed, 'attempt')} failed: {causes}"
    else:
        yield True, "no attempt failed"
    for warning, count in figures.warnings.items():
        yield False, f"{count:,} × {shortened(warning, 200)}"
    for decision in figures.decisions:
        if decision.kind in ("stopped", "rolled_back"):
            yield False, f"{decision.kind.replace('_', ' ')}: {decision.evidence.get('reason', decision.subject)}"
    if figures.flags == []:
        yield True, "no text leaks answers or grows without end"


def places_listed(places: Places) -> Sequence[tuple[str, str]]:
    """What lies where."""
    return [(name, str(place)) for name, place in (("report", places.page), ("store", places.store)) if place]


def next_commands(figures: TuningFigures, places: Places) -> Sequence[tuple[str, str]]:
    """Commands worth running next, each with what it does."""
    commands: list[tuple[str, str]] = []
    if figures.run.state is not RunState.SUCCEEDED:
        commands.append(("the same command again", "goes on where it stopped"))
    where = ["--out", str(places.work)] if places.work else ["--store", places.store]
    commands.append((shlex.join(["coterie", "report", figures.run.id, *where]), "shows this again"))

    def prompts(*words: str) -> str:
        return shlex.join(["coterie", "prompts", *words, "--store", places.store])

    for change in figures.prompts:
        if change.changed:
            before, after = [f"{change.name}@{each.version}" for each in (change.before, change.after)]
            commands.append((prompts("diff", before, after), "what was changed"))
            commands.append(
                (prompts("activate", before), "goes back to what it was")
                if change.in_use
                else (prompts("activate", after), "puts it to use all the same")
            )
    if figures.prompts:
        commands.append((prompts("export", "prompts/"), "writes the active prompts to files, for git"))
    return commands


def interval_text(interval: Interval | None, *, sign: str = "") -> str:
    """``0.712 [0.660, 0.761]``; with ``sign="+"`` a difference."""
    if interval is None:
        return NOTHING
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
