"""The report of a tuning run as one HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from coterie_trainers.report.markup import bullets, listing, section, table, text, verdicts, whole_page
from coterie_trainers.report.places import Places
from coterie_trainers.report.tuning.figures import PromptChange, TuningFigures
from coterie_trainers.report.tuning.wording import (
    CANDIDATE_HEADS,
    candidate_row,
    change_facts,
    change_title,
    headline,
    health_lines,
    next_commands,
    places_listed,
    score_note,
    score_rows,
    spent_lines,
)

CLASSES = {"+": "added", "-": "removed", "@": "place"}
"""First character of a line of a diff → its class."""


def render_tuning(figures: TuningFigures, places: Places) -> str:
    """The whole page. All text of models, prompts and paths is escaped."""
    return whole_page(
        figures.run, f"{figures.run.name}: prompts before and after", headline(figures), _sections(figures, places)
    )


def _sections(figures: TuningFigures, places: Places) -> Iterator[str]:
    scores = score_rows(figures)
    if scores:
        heads = ("Of", "Before", "After", "Gain", "Tasks")
        yield section("Score on the held-out test", table(score_note(figures), heads, scores))
    if figures.prompts:
        yield section("Prompts", "".join(map(_change, figures.prompts)))
    if figures.candidates:
        caption = f"{len(figures.candidates)} candidates of {figures.optimiser}: mean score by split, and rollouts"
        rows = [candidate_row(one) for one in figures.candidates]
        yield section("Candidates", table(caption, [head.capitalize() for head in CANDIDATE_HEADS], rows))
    yield section("Budget", bullets(list(spent_lines(figures))))
    yield section("Health", verdicts(health_lines(figures)))
    yield section("Where everything lies", listing(places_listed(places)))
    commands = ((purpose, command) for command, purpose in next_commands(figures, places))
    yield section("What to run next", listing(commands))


def _change(change: PromptChange) -> str:
    head = f"<h3>{text(change_title(change))}</h3>\n"
    if not change.changed:
        return f"<article>\n{head}</article>\n"
    why = f"<h4>Why</h4><pre>{text(change.why)}</pre>\n" if change.why else ""
    lines = "\n".join(f'<span class="{CLASSES.get(line[:1], "same")}">{text(line)}</span>' for line in change.diff)
    whole = f"<details><summary>The whole text</summary><pre>{text(change.after.content['text'])}</pre></details>"
    return (
        f"<article>\n{head}<p><small>{text(change_facts(change))}</small></p>\n{why}"
        f'<pre class="diff">{lines}</pre>\n{whole}\n</article>\n'
    )
