"""Templates: what an optimiser may write into a prompt arrives as it was written; placeholders are filled, or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coterie.errors import PromptError
from coterie.prompts import check_part, check_template, escape, placeholders, render, tool_of, tool_part

NASTY = st.text(alphabet=st.sampled_from("{}\\ab_1 \n\"'%$é漢🙂\u2028"), max_size=40) | st.text(max_size=60)
NAMES = st.from_regex(r"[A-Za-z_é漢][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(NASTY)
@example("{{name}}")
@example("\\{{name}}")
@example("\\\\{{name}} {{{name}}}")
def test_an_escaped_text_renders_to_itself(text: str) -> None:
    template = escape(text)
    assert placeholders(template) == ()
    assert render(template, {}) == text


@given(st.lists(st.tuples(NASTY, NAMES), max_size=5), NASTY, NASTY)
def test_values_stand_where_their_placeholders_stood(pieces: list[tuple[str, str]], end: str, value: str) -> None:
    """Texts and placeholders joined in turn: the value of each comes out between the texts, itself never read again."""
    # A backslash or brace at a text's end would speak to the placeholder after it.
    pieces = [(text.rstrip("\\{") + ".", name) for text, name in pieces]
    template = "".join(f"{escape(text)}{{{{{name}}}}}." for text, name in pieces) + escape(end)
    values = {name: f"{value}{{{{{name}}}}}" for _, name in pieces}
    assert placeholders(template) == tuple(values)
    assert render(template, values) == "".join(f"{text}{values[name]}." for text, name in pieces) + end


def test_only_double_braces_around_a_name_are_a_placeholder() -> None:
    text = json.dumps({"answer": {"a": [1, {}]}}) + " f'{x}' {0} {} {{ x }} {{1}} {{x.y}} {{\"a\": 1}} ${x} %s %(x)s"
    assert placeholders(text) == ()
    assert render(text, {}) == text
    assert render('{"language": {{language}}, "{{{x}}}": {}}', {"language": '"de"', "x": 3}) == (
        '{"language": "de", "{3}": {}}'
    )


def test_a_backslash_makes_a_placeholder_plain_text() -> None:
    assert render("\\{{x}} \\\\{{x}} \\n {{x}}", {"x": "v"}) == "{{x}} \\v \\n v"


def test_a_placeholder_without_value_and_a_value_without_placeholder_are_errors_that_name_them() -> None:
    with pytest.raises(PromptError, match=r"Prompt 'coder' version 3: .*\{\{language\}\} has no value"):
        render("Write {{language}}.", {}, of="prompt 'coder' version 3")
    with pytest.raises(
        PromptError, match=r"the template has no \{\{langage\}\}.*Placeholders of the text: \{\{language"
    ):
        render("Write {{language}}.", {"language": "C", "langage": "D"})


def test_a_rewritten_text_must_keep_its_placeholders_and_add_none() -> None:
    check_template("{{a}} {{b}} {{a}}", ["b", "a"])
    with pytest.raises(PromptError, match=r"Candidate 7f: the text lacks \{\{b\}\}; nobody fills \{\{c\}\}"):
        check_template("{{a}} {{c}}", ["a", "b"], of="candidate 7f")


def test_parts() -> None:
    assert [check_part(part) for part in ("system", "examples", "tool/search")] == ["system", "examples", "tool/search"]
    assert (tool_part("search"), tool_of("tool/search"), tool_of("system")) == ("tool/search", "search", None)
    for wrong in ("System", "tool/", "tools/x", "", None, 3):
        with pytest.raises(PromptError, match="there are 'system', 'examples' and 'tool/<name of the tool>'"):
            check_part(wrong)
