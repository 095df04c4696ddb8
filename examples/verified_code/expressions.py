"""Expressions over whole numbers: read from text, checked, and put into z3.

What they may hold: names, whole numbers, ``+ - *``, ``//`` and ``%`` by a positive number, comparisons (chained, too),
``and or not``, ``a if c else b``, and the calls ``abs(a)``, ``min(a, b)``, ``max(a, b)``, ``implies(c, d)``. They are read with
Python's own parser and never executed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TypeVar

import z3

LARGEST = 10**9
"""The largest number that may be written."""
LONGEST = 300
"""Parts of an expression."""
CALLS = {"abs": 1, "min": 2, "max": 2, "implies": 2, "old": 1}
"""Function → how many arguments it takes. ``old(n)`` is a parameter's value at the start, for invariants."""


class ProgramError(Exception):
    """A text that is no program, contract or expression of this language; the message says why, for whoever wrote it."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)


def read_expression(text: str) -> ast.expr:
    """An expression from text, not yet checked.

    Raises:
        ProgramError: it is none.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"`{text.strip()[:80]}` is no expression: {getattr(error, 'msg', error)}") from None


def truth(node: ast.expr, values: Mapping[str, z3.ArithRef], context: z3.Context) -> z3.BoolRef:
    """A condition in z3.

    Args:
        node: The condition.
        values: Name → what it stands for; ``old(n)`` looks for the name ``old(n)``.
        context: z3's, which all that is put together must share.

    Raises:
        ProgramError: it is no condition, or has what an expression must not have.
    """
    return _of_kind(_put(node, values, context), z3.BoolRef, node, "a condition, true or false")


def number(node: ast.expr, values: Mapping[str, z3.ArithRef], context: z3.Context) -> z3.ArithRef:
    """A whole number in z3. Arguments and errors as for ``truth``."""
    return _of_kind(_put(node, values, context), z3.ArithRef, node, "a whole number")


def check_size(node: ast.AST) -> None:
    """Refuse what is too long, or multiplies too often, for the prover.

    Raises:
        ProgramError: says which limit.
    """
    parts = list(ast.walk(node))
    if len(parts) > LONGEST:
        raise ProgramError(f"too long: more than {LONGEST} parts", getattr(node, "lineno", None))
    if sum(isinstance(part, ast.Mult) for part in parts) > 8:
        raise ProgramError("too many multiplications: at most 8 in an expression", getattr(node, "lineno", None))


Kind = TypeVar("Kind", z3.BoolRef, z3.ArithRef)


def _of_kind(value: z3.ExprRef, kind: type[Kind], node: ast.expr, wanted: str) -> Kind:
    if isinstance(value, kind):
        return value
    raise ProgramError(f"`{ast.unparse(node)}` should be {wanted}", node.lineno)


def _put(node: ast.expr, values: Mapping[str, z3.ArithRef], context: z3.Context) -> z3.ExprRef:
    match node:
        case ast.Constant(value=bool() as value):
            return z3.BoolVal(value, context)
        case ast.Constant(value=int() as value) if abs(value) <= LARGEST:
            return z3.IntVal(value, context)
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Name(id=name):
            raise ProgramError(f"{name!r} is not known here; there are: {', '.join(values) or 'no names'}", node.lineno)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -number(operand, values, context)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return z3.Not(truth(operand, values, context))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as operator, right=right):
            one, other = number(left, values, context), number(right, values, context)
            return {ast.Add: one + other, ast.Sub: one - other, ast.Mult: one * other}[type(operator)]
        # Where the divisor is positive, SMT-LIB's div and mod are Python's.
        case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Mod() as operator, right=ast.Constant(value=int() as by)) if (
            0 < by <= LARGEST and by is not True
        ):
            one = number(left, values, context)
            return one / by if isinstance(operator, ast.FloorDiv) else one % by
        case ast.BinOp(op=ast.FloorDiv() | ast.Mod()):
            raise ProgramError(
                f"`{ast.unparse(node)}`: // and % only by a positive number that is written out", node.lineno
            )
        case ast.BoolOp(op=operator, values=parts):
            conditions = [truth(part, values, context) for part in parts]
            return z3.And(conditions) if isinstance(operator, ast.And) else z3.Or(conditions)
        case ast.Compare(left=left, ops=operators, comparators=rest):
            sides = [number(side, values, context) for side in (left, *rest)]
            pairs = zip(operators, sides, sides[1:], strict=False)
            return z3.And([_compared(operator, one, other, node) for operator, one, other in pairs])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return z3.If(truth(test, values, context), number(body, values, context), number(orelse, values, context))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if CALLS.get(name) == len(arguments):
            return _called(name, arguments, values, context)
    raise ProgramError(f"`{ast.unparse(node)[:80]}` is not part of the language", getattr(node, "lineno", None))


def _compared(operator: ast.cmpop, one: z3.ArithRef, other: z3.ArithRef, node: ast.expr) -> z3.BoolRef:
    match operator:
        case ast.Eq():
            return one == other
        case ast.NotEq():
            return one != other
        case ast.Lt():
            return one < other
        case ast.LtE():
            return one <= other
        case ast.Gt():
            return one > other
        case ast.GtE():
            return one >= other
    raise ProgramError(f"`{ast.unparse(node)}`: compare with == != < <= > >=", node.lineno)


def _called(name: str, arguments: list[ast.expr], values: Mapping[str, z3.ArithRef], context: z3.Context) -> z3.ExprRef:
    if name == "implies":
        return z3.Implies(truth(arguments[0], values, context), truth(arguments[1], values, context))
    if name == "old":
        return _put(ast.copy_location(ast.Name(f"old({ast.unparse(arguments[0])})"), arguments[0]), values, context)
    one, *others = (number(argument, values, context) for argument in arguments)
    if name == "abs":
        return z3.If(one >= 0, one, -one)
    return z3.If(one <= others[0], *((one, others[0]) if name == "min" else (others[0], one)))
