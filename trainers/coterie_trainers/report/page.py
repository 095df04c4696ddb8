"""The report as one HTML page: no script, nothing loaded from elsewhere, light and dark, readable by screen readers."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.report.audits import HEADS, TITLES, ShownAudit
from coterie_trainers.report.drawing import draw_curve
from coterie_trainers.report.figures import Figures
from coterie_trainers.report.markup import bullets, listing, section, table, text, verdicts, whole_page
from coterie_trainers.report.pairs import EpisodePair, ShownEpisode
from coterie_trainers.report.places import Places, listed_places, next_commands
from coterie_trainers.report.wording import (
    DECODING_NAMES,
    cost_lines,
    headline,
    health_lines,
    number,
    percent,
    percent_interval,
    points_interval,
)


def render_page(figures: Figures, places: Places) -> str:
    """The whole page. All text of models, tasks and paths is escaped."""
    title = f"{figures.run.name}: before and after"
    return whole_page(figures.run, title, headline(figures), _sections(figures, places))


def _sections(figures: Figures, places: Places) -> Iterator[str]:
    yield section("Success on the test split", _success(figures))
    curve = draw_curve(figures.curve)
    if curve:
        yield section("Learning curve", curve + _curve_table(figures))
    if figures.families:
        yield section("By family", _families(figures))
    if figures.roles:
        yield section("By role", _roles(figures))
    for audit in figures.audits:
        yield section(TITLES[audit.method], _audit(audit))
    if figures.pairs:
        yield section("Episodes before and after", "".join(map(_pair, figures.pairs)))
    yield section("Health", verdicts(health_lines(figures)))
    yield section("Costs", bullets(cost_lines(figures)))
    yield section("Where everything lies", listing(listed_places(figures, places)))
    commands = ((purpose, command) for command, purpose in next_commands(figures, places))
    yield section("What to run next", listing(commands))


def _success(figures: Figures) -> str:
    rows = [
        (
            DECODING_NAMES[decoding],
            percent_interval(measured.before),
            percent_interval(measured.after),
            points_interval(measured.difference),
        )
        for decoding, measured in figures.decodings.items()
    ]
    caption = (
        "Share of rollouts that succeed, with 95 % bootstrap intervals over tasks; difference in percentage points."
    )
    return table(caption, ("Decoding", "Before", "After", "Difference"), rows)


def _curve_table(figures: Figures) -> str:
    val = {point.step: point.success for point in figures.curve.val}
    train = {point.step: point.success for point in figures.curve.train}
    rows = [(str(step), percent(train.get(step)), percent(val.get(step))) for step in sorted(train.keys() | val.keys())]
    shown = table("Success by training step", ("Step", "Its rollouts", "Validation"), rows)
    return f"<details><summary>The curve as a table</summary>{shown}</details>"


def _families(figures: Figures) -> str:
    rows = [
        (family.family, percent(family.before), percent(family.after), str(family.tasks)) for family in figures.families
    ]
    return table("Sampled success by family of test tasks", ("Family", "Before", "After", "Tasks"), rows)


def _roles(figures: Figures) -> str:
    rows = [
        (
            role.role,
            number(role.reward_before),
            number(role.reward_after),
            number(role.calls_before),
            number(role.calls_after),
            f"{role.calls:,}",
        )
        for role in figures.roles
    ]
    heads = ("Role", "Reward before", "Reward after", "Calls a rollout before", "After", "Calls of the run")
    return table("The roles in sampled test rollouts: mean of the role's own reward, and calls", heads, rows)


def _audit(audit: ShownAudit) -> str:
    shown = table(f"{audit.title}. {audit.legend}", HEADS[audit.method], audit.rows)
    problems = [f"{count} {problem}" for problem, count in audit.problems.items()]
    return shown + (bullets(problems) if problems else "")


def _pair(pair: EpisodePair) -> str:
    family = f" · {pair.family}" if pair.family else ""
    reference = f'<pre class="reference">{text(pair.reference)}</pre>' if pair.reference else ""
    return (
        f"<article>\n<h3>{text(pair.title)}{text(family)} <small>({text(pair.decoding)})</small></h3>\n"
        f"<pre>{text(pair.input)}</pre>{reference}\n"
        f'<div class="sides">{_episode("Before", pair.before)}{_episode("After", pair.after)}</div>\n</article>\n'
    )


def _episode(name: str, episode: ShownEpisode) -> str:
    outcome = "won" if episode.won else "lost"
    turns = "".join(f"<li><strong>{text(role)}</strong><pre>{text(said)}</pre></li>" for role, said in episode.turns)
    content = f"<ol>{turns}</ol>" if turns else "<p>no call</p>"
    return f'<div class="side {outcome}"><h4>{name}: {outcome}</h4>{content}</div>'
