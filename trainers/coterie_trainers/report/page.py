"""The report as one HTML page: no script, nothing loaded from elsewhere, light and dark, readable by screen readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from coterie.vocabulary import RunState
from coterie_trainers.report.audits import HEADS, TITLES, ShownAudit
from coterie_trainers.report.drawing import draw_curve
from coterie_trainers.report.figures import Figures
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
    visible,
)


def render_page(figures: Figures, places: Places) -> str:
    """The whole page. All text of models, tasks and paths is escaped."""
    run = figures.run
    style = files("coterie_trainers.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(_sections(figures, places))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(run.name)}: before and after</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_text(run.name)}</h1>
<p>Run <code>{_text(run.id)}</code>, seed {_text(run.config.get("seed", "–"))}, {_text(run.state.value)}</p>
<p class="{"result" if run.state is RunState.SUCCEEDED else "result unfinished"}">{_text(headline(figures))}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _sections(figures: Figures, places: Places) -> Iterator[str]:
    yield _section("Success on the test split", _success(figures))
    curve = draw_curve(figures.curve)
    if curve:
        yield _section("Learning curve", curve + _curve_table(figures))
    if figures.families:
        yield _section("By family", _families(figures))
    if figures.roles:
        yield _section("By role", _roles(figures))
    for audit in figures.audits:
        yield _section(TITLES[audit.method], _audit(audit))
    if figures.pairs:
        yield _section("Episodes before and after", "".join(map(_pair, figures.pairs)))
    yield _section("Health", _health(figures))
    yield _section("Costs", _list(cost_lines(figures)))
    yield _section("Where everything lies", _listing(listed_places(figures, places)))
    commands = ((purpose, command) for command, purpose in next_commands(figures, places))
    yield _section("What to run next", _listing(commands))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>"


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
    return _table(caption, ("Decoding", "Before", "After", "Difference"), rows)


def _curve_table(figures: Figures) -> str:
    val = {point.step: point.success for point in figures.curve.val}
    train = {point.step: point.success for point in figures.curve.train}
    rows = [(str(step), percent(train.get(step)), percent(val.get(step))) for step in sorted(train.keys() | val.keys())]
    table = _table("Success by training step", ("Step", "Its rollouts", "Validation"), rows)
    return f"<details><summary>The curve as a table</summary>{table}</details>"


def _families(figures: Figures) -> str:
    rows = [
        (family.family, percent(family.before), percent(family.after), str(family.tasks)) for family in figures.families
    ]
    return _table("Sampled success by family of test tasks", ("Family", "Before", "After", "Tasks"), rows)


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
    return _table("The roles in sampled test rollouts: mean of the role's own reward, and calls", heads, rows)


def _audit(audit: ShownAudit) -> str:
    table = _table(f"{audit.title}. {audit.legend}", HEADS[audit.method], audit.rows)
    problems = [f"{count} {problem}" for problem, count in audit.problems.items()]
    return table + (_list(problems) if problems else "")


def _pair(pair: EpisodePair) -> str:
    family = f" · {pair.family}" if pair.family else ""
    reference = f'<pre class="reference">{_text(pair.reference)}</pre>' if pair.reference else ""
    return (
        f"<article>\n<h3>{_text(pair.title)}{_text(family)} <small>({_text(pair.decoding)})</small></h3>\n"
        f"<pre>{_text(pair.input)}</pre>{reference}\n"
        f'<div class="sides">{_episode("Before", pair.before)}{_episode("After", pair.after)}</div>\n</article>\n'
    )


def _episode(name: str, episode: ShownEpisode) -> str:
    outcome = "won" if episode.won else "lost"
    turns = "".join(f"<li><strong>{_text(role)}</strong><pre>{_text(said)}</pre></li>" for role, said in episode.turns)
    content = f"<ol>{turns}</ol>" if turns else "<p>no call</p>"
    return f'<div class="side {outcome}"><h4>{name}: {outcome}</h4>{content}</div>'


def _health(figures: Figures) -> str:
    items = (
        f'<li class="{"good" if good else "bad"}"><span class="mark">{"✓ ok" if good else "! warning"}</span> '
        f"{_text(line)}</li>"
        for good, line in health_lines(figures)
    )
    return f'<ul class="health">{"".join(items)}</ul>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _listing(rows: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd><code>{_text(value)}</code></dd>' for name, value in rows)}</dl>"


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(value: object) -> str:
    return escape(visible(str(value)))
