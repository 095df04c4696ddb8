"""The verifier for Rust: Verus (github.com/verus-lang/verus), where it is installed.

The agent writes one function with its own ``requires``, ``ensures`` and loop invariants. What is asked for stands beside it, in
a function that calls the agent's and has the task's contract; Verus proves both. Whole numbers are ``i64`` here, so the contract
asks of every argument that it is between -1000 and 1000.

What Verus puts out is read as JSON: ``--output-json`` for the summary, and rustc's ``--error-format=json`` for what failed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from contracts import Contract
from expressions import ProgramError, read_expression
from verifier import Finding, Verdict

COMMAND = "verus"
SECONDS = 120
"""The longest that a proof may take."""
BOUND = 1000
"""How large an argument may be."""
REFUSED = re.compile(
    r"#\s*!?\[|\w+\s*!\s*[\[({]|\b(?:assume|admit|assume_specification|axiom|unsafe|extern|external_body|external|trusted"
    r"|mod|use|static|impl|trait|macro_rules|uninterp|exec_allows_no_decreases_clause)\b"
)
"""What could make Verus believe something unproved, or read files: attributes, macros, assumptions, other items."""


class VerusVerifier:
    """Proves functions in Rust."""

    language = "rust"

    def __init__(self) -> None:
        self._path = shutil.which(os.environ.get("VERUS", COMMAND))
        if self._path is None:
            raise RuntimeError(
                "Verus is not installed: there is no command 'verus' on PATH. Get a release from "
                "https://github.com/verus-lang/verus/releases and put it there, or name it in VERUS; or take VERIFIER=z3."
            )

    def verify(self, program: str, contract: Contract) -> Verdict:
        """As ``Verifier.verify``."""
        try:
            source = assembled(program, contract)
        except ProgramError as error:
            return Verdict((Finding(str(error)),))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "program.rs"
            file.write_text(source, encoding="utf-8")
            command = [str(self._path), "--crate-type=lib", "--no-cheating", "--output-json"]
            command += ["--multiple-errors", "5", "program.rs", "--error-format=json"]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
            except subprocess.TimeoutExpired:
                return Verdict((Finding(f"not proved within {SECONDS} seconds"),))
        return read_output(done.returncode, done.stdout, done.stderr)


def assembled(program: str, contract: Contract) -> str:
    """The file that Verus proves: the agent's function, and one with the contract that calls it.

    Raises:
        ProgramError: the program holds something that could stand in for a proof, or is not the function that is wanted.
    """
    blocks = re.findall(r"```[a-zA-Z]*\n(.*?)```", program, re.DOTALL)
    source = re.sub(r"/\*.*?\*/|//[^\n]*", "", blocks[-1] if blocks else program, flags=re.DOTALL)
    if refused := REFUSED.search(source):
        raise ProgramError(
            f"`{refused[0].strip()}` is not allowed: nothing may be assumed, and no macros or attributes used"
        )
    if not re.search(rf"\bfn\s+{re.escape(contract.name)}\s*\(", source):
        raise ProgramError(f"there is no function `fn {contract.name}(…)`")
    if any(quote in source for quote in "\"'"):
        raise ProgramError("texts and characters are not allowed")
    _check_braces(source)
    arguments = ", ".join(f"{name}: i64" for name in contract.parameters)
    bounds = [f"-{BOUND} <= {name} <= {BOUND}" for name in contract.parameters]
    requires = "".join(f"        {each},\n" for each in [*bounds, *map(in_rust, contract.requires)])
    ensures = "".join(f"        {each},\n" for each in map(in_rust, contract.ensures))
    return (
        f"use vstd::prelude::*;\n\nverus! {{\n\n{source.strip()}\n\n"
        f"fn wanted_of_{contract.name}({arguments}) -> (result: i64)\n    requires\n{requires}    ensures\n{ensures}"
        f"{{\n    {contract.name}({', '.join(contract.parameters)})\n}}\n\n}} // verus!\n"
    )


def _check_braces(source: str) -> None:
    """Refuse what would end the block that it stands in, and so reach what is asked for."""
    depth = 0
    for brace in re.findall(r"[{}]", source):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            break
    if depth:
        raise ProgramError("the braces { } do not match")


def in_rust(condition: str) -> str:
    """A condition of a contract as Verus writes it, over unbounded ``int``: what is compared are whole numbers, not ``i64``."""
    return _rust(read_expression(condition))


def _rust(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=bool() as value):
            return str(value).lower()
        case ast.Constant(value=int() as value):
            return f"{value}int"
        case ast.Name(id=name):
            return f"({name} as int)"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_rust(operand)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"(!{_rust(operand)})"
        # Of a positive divisor, Verus' / and % on int are Python's // and %.
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _SIGNS:
            return f"({_rust(left)} {_SIGNS[type(operator)]} {_rust(right)})"
        case ast.BoolOp(op=operator, values=parts):
            return f"({(' && ' if isinstance(operator, ast.And) else ' || ').join(map(_rust, parts))})"
        case ast.Compare(left=left, ops=operators, comparators=rest):
            sides = [_rust(side) for side in (left, *rest)]
            pairs = zip(operators, sides, sides[1:], strict=False)
            return f"({' && '.join(f'{one} {_SIGNS[type(sign)]} {other}' for sign, one, other in pairs)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return f"(if {_rust(test)} {{ {_rust(body)} }} else {{ {_rust(orelse)} }})"
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _called(name, [_rust(argument) for argument in arguments])
    raise ProgramError(f"`{ast.unparse(node)}` cannot be written for Verus")


_SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "/",
    ast.Mod: "%",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def _called(name: str, arguments: list[str]) -> str:
    match name, arguments:
        case "implies", [one, other]:
            return f"({one} ==> {other})"
        case "abs", [one]:
            return f"(if {one} >= 0int {{ {one} }} else {{ -{one} }})"
        case "min" | "max", [one, other]:
            sign = "<=" if name == "min" else ">="
            return f"(if {one} {sign} {other} {{ {one} }} else {{ {other} }})"
    raise ProgramError(f"`{name}` cannot be written for Verus")


def read_output(returncode: int, stdout: str, stderr: str) -> Verdict:
    """What Verus says. Proved is only what it says so of: a summary without errors and with something verified."""
    findings = [finding for line in stderr.splitlines() if (finding := _diagnostic(line)) is not None]
    summary = _summary(stdout)
    clean = not summary.get("encountered-vir-error") and not summary.get("encountered-error")
    verified, errors = summary.get("verified"), summary.get("errors")
    if returncode == 0 and not findings and clean and errors == 0 and isinstance(verified, int) and verified > 0:
        return Verdict(())
    if not findings:
        said = (stderr.strip() or stdout.strip())[-300:] or "nothing"
        findings = [Finding(f"Verus proved nothing (exit status {returncode}); it said: {said}")]
    return Verdict(tuple(findings))


def _summary(stdout: str) -> dict[str, Any]:
    try:
        report = json.loads(stdout)
    except ValueError:
        return {}
    summary = report.get("verification-results") if isinstance(report, dict) else None
    return summary if isinstance(summary, dict) else {}


def _diagnostic(line: str) -> Finding | None:
    """One of rustc's diagnostics, if the line is one and an error."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or said.get("level") != "error":
        return None
    message = str(said.get("message", "an error"))
    if message.startswith("aborting due to"):
        return None
    spans = [span for span in said.get("spans", []) if isinstance(span, dict)]
    primary = next((span for span in spans if span.get("is_primary")), None)
    written = [text["text"].strip() for span in spans[:2] for text in span.get("text", [])[:1] if text.get("text")]
    shown = "; ".join(dict.fromkeys(written))
    return Finding(f"{message}: `{shown}`" if shown else message, primary.get("line_start") if primary else None)
