"""The pieces that pages are made of. All text of models, tasks and paths is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from coterie.vocabulary import Run, RunState
from coterie_trainers.report.wording import visible


def whole_page(run: Run, title: str, headline: str, sections: Iterable[str]) -> str:
    """A page with nothing loaded from elsewhere.

    Args:
        run: Whose page it is.
        title: The window's.
        headline: The result in a sentence.
        sections: What follows, as ``section`` makes them.
    """
    style = files("coterie_trainers.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(run.name)}</h1>
<p>Run <code>{text(run.id)}</code>, seed {text(run.config.get("seed", "–"))}, {text(run.state.value)}</p>
<p class="{"result" if run.state is RunState.SUCCEEDED else "result unfinished"}">{text(headline)}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def section(title: str, content: str) -> str:
    """A part of the page under its title; ``content`` is markup."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>"


def verdicts(lines: Iterable[tuple[bool, str]]) -> str:
    """Lines with whether it is well."""
    items = (
        f'<li class="{"good" if good else "bad"}"><span class="mark">{"✓ ok" if good else "! warning"}</span> '
        f"{text(line)}</li>"
        for good, line in lines
    )
    return f'<ul class="health">{"".join(items)}</ul>'


def bullets(lines: Sequence[str]) -> str:
    """Lines with bullets."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def listing(rows: Iterable[tuple[str, str]]) -> str:
    """Names with what they stand for."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd><code>{text(value)}</code></dd>' for name, value in rows)}</dl>"


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def text(value: object) -> str:
    """Any text, escaped, with what could mislead made visible."""
    return escape(visible(str(value)))
