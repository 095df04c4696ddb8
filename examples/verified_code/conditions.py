"""What must be proved of a program: verification conditions by weakest preconditions.

The weakest precondition of a statement is what must hold before it so that a claim holds after it (Dijkstra 1975):

    wp(x = e, Q)                  Q with e for x
    wp(if c: A else: B, Q)        (c → wp(A, Q)) and (not c → wp(B, Q))
    wp(return e, Q)               the contract's promises with e for the result
    wp(while c: A, Q)             the invariant I now; and for any values of what A changes:
                                  I and c → wp(A, I);  I and c → 0 ≤ d, and d gets smaller;  I and not c → Q

Claims are kept apart by what they mean and where they come from, so that one that fails can be named. "Any values" are fresh
names (``i`` at the head of the loop in line 4 is ``i@4``): the whole is valid if and only if it holds for all values of all names.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import z3
from contracts import RESULT, Contract
from expressions import ProgramError, number, read_expression, truth
from programs import Loop, assignments, read_loop


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must hold."""

    what: str
    """In words, with the condition as it was written."""
    line: int | None = None
    """Of the program; None for what belongs to its end."""


Claims = Mapping[Claim, z3.BoolRef]
"""Claim → what must hold here so that it will hold there."""


def conditions(function: ast.FunctionDef, contract: Contract, context: z3.Context) -> Claims:
    """Claim → the formula that must be valid, for a checked program and a contract.

    Raises:
        ProgramError: an invariant or a condition of the contract has what an expression must not have.
    """
    asked = precondition(contract, context)
    found = _Conditions(contract, context).of_function(function)
    return {claim: z3.Implies(asked, formula) for claim, formula in found.items()}


def precondition(contract: Contract, context: z3.Context) -> z3.BoolRef:
    """What the contract asks of the arguments.

    Raises:
        ProgramError: as ``conditions``.
    """
    values = constants(contract.parameters, context)
    asked = [truth(read_expression(each), values, context) for each in contract.requires]
    return z3.And([z3.BoolVal(True, context), *asked])


def constants(names: Sequence[str], context: z3.Context) -> dict[str, z3.ArithRef]:
    """Name → any whole number."""
    return {name: z3.Int(name, context) for name in names}


@dataclass
class _Conditions:
    """The conditions of one function."""

    contract: Contract
    context: z3.Context

    def of_function(self, function: ast.FunctionDef) -> Claims:
        parameters = constants(self.contract.parameters, self.context)
        old = {name: self._old(name) for name in parameters}
        no_result = {Claim("the function returns a result on every path"): z3.BoolVal(False, self.context)}
        claims = self._body(function.body, no_result)
        starts = [(old[name], value) for name, value in parameters.items()]
        return {claim: z3.substitute(formula, *starts) for claim, formula in claims.items()}

    def _body(self, body: Sequence[ast.stmt], after: Claims) -> Claims:
        for statement in reversed(body):
            after = self._statement(statement, after)
        return after

    def _statement(self, statement: ast.stmt, after: Claims) -> Claims:
        match statement:
            case ast.Assign() | ast.AugAssign():
                names, values = assignments(statement)
                new = [(self._now(name), self._number(value)) for name, value in zip(names, values, strict=True)]
                return {claim: z3.substitute(formula, *new) for claim, formula in after.items()}
            case ast.If(test=test, body=then, orelse=otherwise):
                return self._either(self._truth(test), self._body(then, after), self._body(otherwise, after))
            case ast.While():
                return self._loop(read_loop(statement), after)
            case ast.Return(value=ast.expr() as value):
                return self._returned(self._number(value))
            case ast.Pass():
                return after
        raise ProgramError(f"`{ast.unparse(statement)}` is not part of the language", statement.lineno)

    def _either(self, condition: z3.BoolRef, then: Claims, otherwise: Claims) -> Claims:
        met = z3.BoolVal(True, self.context)
        return {
            claim: z3.And(
                z3.Implies(condition, then.get(claim, met)), z3.Implies(z3.Not(condition), otherwise.get(claim, met))
            )
            for claim in dict.fromkeys([*then, *otherwise])
        }

    def _returned(self, result: z3.ArithRef) -> Claims:
        values = {name: self._old(name) for name in self.contract.parameters} | {RESULT: result}
        return {
            Claim(f"ensures {each}"): truth(read_expression(each), values, self.context)
            for each in self.contract.ensures
        }

    def _loop(self, loop: Loop, after: Claims) -> Claims:
        invariants = {ast.unparse(each): self._truth(each) for each in loop.invariants}
        held, goes_on = z3.And(list(invariants.values())), self._truth(loop.condition)
        measure, written = self._number(loop.decreases), ast.unparse(loop.decreases)
        before = z3.Int(f"the measure@{loop.line}", self.context)
        kept = {
            Claim(f"the invariant `{text}` still holds after a turn of the loop", loop.line): formula
            for text, formula in invariants.items()
        }
        smaller = {Claim(f"`{written}` gets smaller in each turn of the loop", loop.line): measure < before}
        turn = {
            claim: z3.Implies(z3.And(held, goes_on, measure == before), formula)
            for claim, formula in self._body(loop.body, kept | smaller).items()
        }
        turn[Claim(f"`{written}` is at least 0 while the loop goes on", loop.line)] = z3.Implies(
            z3.And(held, goes_on), measure >= 0
        )
        end = {claim: z3.Implies(z3.And(held, z3.Not(goes_on)), formula) for claim, formula in after.items()}
        begin = {
            Claim(f"the invariant `{text}` holds when the loop begins", loop.line): formula
            for text, formula in invariants.items()
        }
        any_values = [(self._now(name), z3.Int(f"{name}@{loop.line}", self.context)) for name in loop.changes]
        inside = self._joined(turn, end)
        return self._joined(begin, {claim: z3.substitute(formula, *any_values) for claim, formula in inside.items()})

    def _joined(self, some: Claims, others: Claims) -> Claims:
        met = z3.BoolVal(True, self.context)
        return {
            claim: z3.And(some.get(claim, met), others.get(claim, met)) for claim in dict.fromkeys([*some, *others])
        }

    def _now(self, name: str) -> z3.ArithRef:
        return z3.Int(name, self.context)

    def _old(self, name: str) -> z3.ArithRef:
        return z3.Int(f"old({name})", self.context)

    def _values(self, node: ast.AST) -> Mapping[str, z3.ArithRef]:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return {name: self._now(name) for name in names} | {
            f"old({name})": self._old(name) for name in self.contract.parameters
        }

    def _truth(self, node: ast.expr) -> z3.BoolRef:
        return truth(node, self._values(node), self.context)

    def _number(self, node: ast.expr) -> z3.ArithRef:
        return number(node, self._values(node), self.context)
