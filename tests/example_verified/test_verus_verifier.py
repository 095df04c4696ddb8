"""The verifier for Rust. Where Verus is installed it is run; what it puts out is otherwise written here in the form that its source
(``main.rs``: ``verification-results``) and rustc's JSON diagnostics have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from example_modules import example_modules

pytest.importorskip("z3")
installed = pytest.mark.skipif(
    shutil.which("verus") is None, reason="Verus is not installed: no command 'verus' on PATH"
)

GOOD = """
fn half(n: i64) -> (result: i64)
    requires 0 <= n <= 1000,
    ensures result == n / 2,
{
    let mut part: i64 = 0;
    while 2 * part + 2 <= n
        invariant 0 <= part, 2 * part <= n, n <= 1000,
        decreases n - 2 * part,
    {
        part = part + 1;
    }
    part
}
"""


@pytest.fixture
def modules() -> Iterator[Callable[[str], ModuleType]]:
    with example_modules("verified_code") as module:
        yield module


def summary(**results: object) -> str:
    return json.dumps({"verification-results": {"encountered-vir-error": False, **results}, "func-details": {}})


def diagnostic(message: str, text: str, line: int) -> str:
    span = {"file_name": "program.rs", "line_start": line, "is_primary": True, "text": [{"text": text}], "label": None}
    return json.dumps({"$message_type": "diagnostic", "level": "error", "message": message, "spans": [span]})


def test_a_clean_summary_is_a_proof(modules: Callable[[str], ModuleType]) -> None:
    assert modules("verus").read_output(0, summary(success=True, verified=3, errors=0), "").proved


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        (1, summary(success=True, verified=3, errors=0)),
        (0, summary(success=True, verified=0, errors=0)),
        (0, summary(success=False, verified=2, errors=1)),
        (0, json.dumps({"verification-results": {"encountered-vir-error": True, "success": False}})),
        (0, ""),
        (0, "[]"),
        (0, "verification results:: 3 verified, 0 errors"),
    ],
)
def test_anything_else_is_none(modules: Callable[[str], ModuleType], code: int, stdout: str) -> None:
    verdict = modules("verus").read_output(code, stdout, "")
    assert not verdict.proved
    assert "Verus proved nothing" in str(verdict)


def test_what_failed_is_told_with_its_line(modules: Callable[[str], ModuleType]) -> None:
    said = [
        diagnostic("invariant not satisfied at end of loop body", "        invariant 2 * part < n,", 9),
        diagnostic("postcondition not satisfied", "    ensures result == n / 2,", 6),
        json.dumps({"level": "error", "message": "aborting due to 2 previous errors", "spans": []}),
        json.dumps({"level": "note", "message": "while loop", "spans": []}),
        "not JSON",
    ]
    verdict = modules("verus").read_output(1, summary(success=False, verified=1, errors=2), "\n".join(said))
    assert [(finding.line, finding.problem) for finding in verdict.findings] == [
        (9, "invariant not satisfied at end of loop body: `invariant 2 * part < n,`"),
        (6, "postcondition not satisfied: `ensures result == n / 2,`"),
    ]


def test_the_contract_stands_beside_the_agents_function(modules: Callable[[str], ModuleType]) -> None:
    contract = modules("contracts").Contract(
        "half", ("n",), ("n >= 0",), ("result == n // 2", "implies(n > 3, result > 1)")
    )
    source = modules("verus").assembled(f"Here it is:\n```rust{GOOD}```", contract)
    assert source.startswith("use vstd::prelude::*;\n\nverus! {")
    assert "Here it is" not in source
    assert "fn wanted_of_half(n: i64) -> (result: i64)" in source
    assert "        -1000 <= n <= 1000,\n        ((n as int) >= 0int),\n    ensures\n" in source
    assert "((result as int) == ((n as int) / 2int))" in source
    assert "(((n as int) > 3int) ==> ((result as int) > 1int))" in source


@pytest.mark.parametrize(
    "trick",
    [
        "assume(false);",
        "proof { admit(); }",
        "#[verifier::external_body]",
        "#![allow(x)]",
        'include_str!("/etc/hostname");',
        "unsafe { }",
        "mod other;",
        "use std::fs;",
    ],
)
def test_what_stands_in_for_a_proof_is_refused(modules: Callable[[str], ModuleType], trick: str) -> None:
    contract = modules("contracts").Contract("half", ("n",), (), ("result == n // 2",))
    with pytest.raises(modules("expressions").ProgramError, match="is not allowed"):
        modules("verus").assembled(f"{trick}\n{GOOD}", contract)


def test_closing_braces_do_not_reach_the_wanted_contract(modules: Callable[[str], ModuleType]) -> None:
    contract = modules("contracts").Contract("half", ("n",), (), ("result == n // 2",))
    with pytest.raises(modules("expressions").ProgramError, match="braces"):
        modules("verus").assembled(GOOD + "} fn half(n: i64) -> i64 { 0", contract)


def test_without_verus_the_message_says_where_to_get_it(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERUS", "no-such-command")
    with pytest.raises(RuntimeError, match=r"Verus is not installed.*VERIFIER=z3"):
        modules("verifier").verifier_named("verus")
    with pytest.raises(RuntimeError, match="there are z3 and verus"):
        modules("verifier").verifier_named("coq")


@installed
def test_verus_itself(modules: Callable[[str], ModuleType]) -> None:
    contract = modules("contracts").Contract("half", ("n",), ("n >= 0",), ("result == n // 2",))
    verifier = modules("verus").VerusVerifier()
    assert verifier.verify(GOOD, contract).proved
    wrong = verifier.verify(GOOD.replace("2 * part <= n", "2 * part < n"), contract)
    assert "invariant" in str(wrong)
    assert not verifier.verify(
        GOOD.replace("n / 2,", "n / 2 + 0 * n, true,").replace("part\n}", "part + 1\n}"), contract
    ).proved
