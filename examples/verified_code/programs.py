"""Programs: one function over whole numbers, in a small part of Python. They are read and checked, never executed.

    def halve(n):
        half = 0
        while 2 * half + 1 < n:
            invariant(2 * half <= n)
            decreases(n - half)
            half = half + 1
        return half

The machine that these programs are for adds and subtracts, and multiplies by a number that is written out; it does not
divide. Invariants and contracts may (``expressions.py``). Every loop says what holds each time that its condition is looked
at (``invariant``, as often as wanted) and what gets smaller and stays at least 0 (``decreases``): so it ends.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contracts import Contract
from expressions import CALLS, ProgramError, check_size

STATEMENTS = 60
"""The most that a program may have."""
LOOPS = 5


@dataclass(frozen=True, slots=True)
class Loop:
    """What a loop's author says of it, and its body without that."""

    condition: ast.expr
    invariants: tuple[ast.expr, ...]
    decreases: ast.expr
    body: Sequence[ast.stmt]
    line: int
    changes: tuple[str, ...]
    """The variables that the body gives a value."""


def read_program(text: str, contract: Contract) -> ast.FunctionDef:
    """The function of an agent's answer: its last fenced block, or all of it.

    Raises:
        ProgramError: it is no such function, or not in the language; says the line and what is allowed.
    """
    blocks = re.findall(r"```[a-zA-Z]*\n(.*?)```", text, re.DOTALL)
    source = blocks[-1] if blocks else text
    if len(source) > 20_000:
        raise ProgramError("the program is too long")
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"no program: {getattr(error, 'msg', error)}", getattr(error, "lineno", None)) from None
    match module.body:
        case [ast.FunctionDef() as function]:
            pass
        case _:
            raise ProgramError(f"the program should be one function, def {contract.name}(…), and nothing else")
    _check_head(function, contract)
    _check_body(function)
    _check_values(function.body, set(contract.parameters))
    return function


def read_loop(node: ast.While) -> Loop:
    """A loop's parts.

    Raises:
        ProgramError: it has no ``invariant`` or no ``decreases`` at the head of its body.
    """
    invariants: list[ast.expr] = []
    measures: list[ast.expr] = []
    body = list(node.body)
    while body:
        match body[0]:
            case ast.Expr(value=ast.Call(func=ast.Name(id="invariant"), args=[condition], keywords=[])):
                invariants.append(condition)
            case ast.Expr(value=ast.Call(func=ast.Name(id="decreases"), args=[measure], keywords=[])):
                measures.append(measure)
            case _:
                break
        body.pop(0)
    if not invariants:
        raise ProgramError("the loop's body should begin with invariant(…)", node.lineno)
    if len(measures) != 1:
        raise ProgramError(
            "the loop needs one decreases(…) at the head of its body: what shows that it ends", node.lineno
        )
    return Loop(node.test, tuple(invariants), measures[0], body, node.lineno, tuple(sorted(set(_assigned(body)))))


def assignments(node: ast.Assign | ast.AugAssign) -> tuple[list[str], list[ast.expr]]:
    """What an assignment changes, and to what, all at once.

    Raises:
        ProgramError: it is not ``a = …``, ``a += …`` or ``a, b = …, …``.
    """
    match node:
        case ast.AugAssign(target=ast.Name(id=name) as target, op=operator, value=value):
            read = ast.copy_location(ast.Name(target.id, ast.Load()), target)
            return [name], [ast.copy_location(ast.BinOp(read, operator, value), node)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [name], [value]
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if len(set(names)) == len(targets):
                return names, list(values)
    raise ProgramError("assign as in `a = …`, `a += …` or `a, b = …, …`", node.lineno)


def _check_head(function: ast.FunctionDef, contract: Contract) -> None:
    arguments = function.args
    names = tuple(argument.arg for argument in arguments.args)
    others = [arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg, arguments.defaults]
    if function.name != contract.name or names != contract.parameters or any(others) or function.decorator_list:
        raise ProgramError(
            f"the function should be: def {contract.name}({', '.join(contract.parameters)}):", function.lineno
        )


def _check_body(function: ast.FunctionDef) -> None:
    statements = list(_statements(function.body))
    if len(statements) > STATEMENTS:
        raise ProgramError(f"too long: more than {STATEMENTS} statements")
    if sum(isinstance(statement, ast.While) for statement in statements) > LOOPS:
        raise ProgramError(f"too many loops: more than {LOOPS}")
    for statement in statements:
        match statement:
            case ast.Assign() | ast.AugAssign():
                for value in assignments(statement)[1]:
                    _check_machine(value)
            case ast.If(test=test):
                _check_machine(test)
            case ast.While(test=test, orelse=[]):
                _check_machine(test)
                loop = read_loop(statement)
                for claim in (*loop.invariants, loop.decreases):
                    check_size(claim)
            case ast.Return(value=ast.expr() as value):
                _check_machine(value)
            case ast.Pass():
                pass
            case ast.Expr(value=ast.Call(func=ast.Name(id="invariant" | "decreases"))):
                raise ProgramError("invariant(…) and decreases(…) stand at the head of a loop's body", statement.lineno)
            case _:
                written = ast.unparse(statement).splitlines()[0][:60]
                raise ProgramError(
                    f"`{written}`: there are only assignments, if, while, return and pass", statement.lineno
                )


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All of a body; the claims at the head of loops are not among them."""
    for statement in body:
        yield statement
        match statement:
            case ast.If(body=then, orelse=otherwise):
                yield from _statements([*then, *otherwise])
            case ast.While():
                yield from _statements(read_loop(statement).body)


def _check_machine(node: ast.expr) -> None:
    """Refuse what the machine cannot do."""
    check_size(node)
    for part in ast.walk(node):
        match part:
            case ast.BinOp(op=ast.FloorDiv() | ast.Mod()):
                raise ProgramError(f"`{ast.unparse(part)}`: the machine does not divide; use a loop", node.lineno)
            case ast.BinOp(left=left, op=ast.Mult(), right=right) if not (_written(left) or _written(right)):
                raise ProgramError(
                    f"`{ast.unparse(part)}`: the machine multiplies only by a number that is written out", node.lineno
                )
            case ast.Call(func=ast.Name(id="old" | "implies")):
                raise ProgramError(f"`{ast.unparse(part)}` is for invariants", node.lineno)


def _written(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant)


def _assigned(body: Sequence[ast.stmt]) -> Iterator[str]:
    for statement in _statements(body):
        if isinstance(statement, ast.Assign | ast.AugAssign):
            yield from assignments(statement)[0]


def _check_values(body: Sequence[ast.stmt], known: set[str]) -> tuple[set[str], bool]:
    """Refuse a name that may have no value yet; gives the names known afterwards, and whether one gets there at all."""
    for statement in body:
        match statement:
            case ast.Assign() | ast.AugAssign():
                names, values = assignments(statement)
                for value in values:
                    _check_known(value, known)
                if reserved := [name for name in names if name in CALLS or name == "result"]:
                    raise ProgramError(f"{reserved[0]!r} is no name for a variable here", statement.lineno)
                known = known | set(names)
            case ast.If(test=test, body=then, orelse=otherwise):
                _check_known(test, known)
                branches = [_check_values(branch, set(known)) for branch in (then, otherwise)]
                left = [names for names, goes_on in branches if goes_on]
                if not left:
                    return known, False
                known = set.intersection(*left)
            case ast.While():
                loop = read_loop(statement)
                for part in (loop.condition, loop.decreases, *loop.invariants):
                    _check_known(part, known)
                _check_values(loop.body, set(known))
            case ast.Return(value=ast.expr() as value):
                _check_known(value, known)
                return known, False
    return known, True


def _check_known(node: ast.expr, known: set[str]) -> None:
    called = {id(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)}
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and id(part) not in called and part.id not in known:
            raise ProgramError(f"{part.id!r} may have no value here", part.lineno)
