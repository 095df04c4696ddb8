"""The verifier for the part of Python: z3 proves the conditions, or finds values for which one does not hold."""

from __future__ import annotations

import z3
from conditions import Claim, conditions, constants, precondition
from contracts import RESULT, Contract
from expressions import ProgramError, read_expression, truth
from programs import read_program
from verifier import Finding, Verdict

EFFORT = 4_000_000
"""z3's resource limit a condition: it counts steps and not seconds, so a verdict does not depend on how busy the machine is."""
SECONDS = 60
"""When a condition is given up in any case."""
SMALL = 12
"""Counterexamples are looked for among numbers up to this first: a person reads them, and a model does."""


class Z3Verifier:
    """Proves programs of ``programs.py`` for all whole numbers, however large, and that they end."""

    language = "python"

    def verify(self, program: str, contract: Contract) -> Verdict:
        """As ``Verifier.verify``."""
        context = z3.Context()
        try:
            claims = conditions(read_program(program, contract), contract, context)
        except ProgramError as error:
            return Verdict((Finding(str(error)),))
        except RecursionError:
            return Verdict((Finding("the program is nested too deeply"),))
        found = (_prove(claim, formula) for claim, formula in claims.items())
        return Verdict(tuple(finding for finding in found if finding is not None))


def compare(written: Contract, wanted: Contract) -> tuple[Finding | None, Finding | None]:
    """How a contract differs from the one that was wanted: what it forbids too much, and what it allows too much.

    It forbids too much if it asks more of the arguments, or promises more, than was wanted; it allows too much if a result that
    was not wanted keeps it.
    """
    context = z3.Context()
    wanted_before = precondition(wanted, context)
    try:
        written_before = precondition(written, context)
        kept = _promised(written, context)
    except ProgramError as error:
        problem = Finding(f"the contract cannot be read: {error}")
        return problem, problem
    asked = _promised(wanted, context)
    too_much = _prove(
        Claim("allows everything that was asked for"),
        z3.Implies(wanted_before, z3.And(written_before, z3.Implies(asked, kept))),
    )
    too_little = _prove(Claim("allows nothing else"), z3.Implies(z3.And(wanted_before, written_before, kept), asked))
    return too_much, too_little


def _promised(contract: Contract, context: z3.Context) -> z3.BoolRef:
    values = constants([*contract.parameters, RESULT], context)
    return z3.And([truth(read_expression(each), values, context) for each in contract.ensures])


def _prove(claim: Claim, formula: z3.BoolRef) -> Finding | None:
    """None if the formula is valid, else what is wrong with it."""
    solver = z3.Solver(ctx=formula.ctx)
    solver.set(rlimit=EFFORT, timeout=SECONDS * 1000)
    solver.add(z3.Not(formula))
    names = _names(formula)
    try:
        solver.push()
        solver.add([z3.And(name >= -SMALL, name <= SMALL) for name in names])
        answer = solver.check()
        if answer != z3.sat:
            solver.pop()
            answer = solver.check()
    except z3.Z3Exception as error:
        return Finding(f"not proved: {claim.what} (z3 gave up: {error})", claim.line)
    if answer == z3.unsat:
        return None
    if answer == z3.unknown:
        return Finding(f"not proved within the limits, and not refuted: {claim.what}", claim.line)
    model = solver.model()
    values = {str(name): model.eval(name, model_completion=True).as_long() for name in names}
    shown = {name: value for name, value in values.items() if not name.startswith("the measure")}
    return Finding(f"does not hold: {claim.what}", claim.line, shown)


def _names(formula: z3.BoolRef) -> list[z3.ArithRef]:
    """The free names of a formula, those of the arguments first."""
    found: dict[str, z3.ArithRef] = {}
    seen: set[int] = set()
    waiting: list[z3.ExprRef] = [formula]
    while waiting:
        part = waiting.pop()
        if part.get_id() in seen:
            continue
        seen.add(part.get_id())
        if z3.is_const(part) and part.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            found[str(part)] = part
        waiting.extend(part.children())
    return [found[name] for name in sorted(found, key=lambda name: ("@" in name, name))]
