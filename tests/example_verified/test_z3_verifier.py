"""The verifier is sound: what it proves holds when it is run, and what it refutes does not. z3 is the real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from example_modules import EXAMPLES, example_modules
from hypothesis import given, settings
from hypothesis import strategies as st
from written_programs import SOLUTIONS

pytest.importorskip("z3")

TRIANGLE = SOLUTIONS["triangle"]


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    with example_modules("verified_code") as module:
        yield module


@pytest.fixture(scope="module")
def verify(modules: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """Signature, requires, ensures, program → the verdict."""
    contracts, verifier = modules("contracts"), modules("proving").Z3Verifier()

    def verdict(signature: str, requires: list[str], ensures: list[str], program: str) -> Any:
        contract = contracts.Contract.of_task(signature, {"requires": requires, "ensures": ensures})
        return verifier.verify(program, contract)

    return verdict


def of_triangle(verify: Callable[..., Any], program: str) -> Any:
    return verify("triangle(n)", ["n >= 0"], ["2 * result == n * (n + 1)"], program)


def tasks(split: str) -> list[dict[str, Any]]:
    lines = (EXAMPLES / "verified_code" / "tasks" / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_task_can_be_done_and_proved(
    split: str, verify: Callable[..., Any], modules: Callable[[str], ModuleType]
) -> None:
    compare, contract_class = modules("proving").compare, modules("contracts").Contract
    for task in tasks(split):
        signature, reference = task["input"]["signature"], task["reference"]
        verdict = verify(signature, reference["requires"], reference["ensures"], SOLUTIONS[task["id"]])
        assert verdict.proved, f"{task['id']}: {verdict}"
        contract = contract_class.of_task(signature, reference)
        assert compare(contract_class.parse(signature, str(contract)), contract) == (None, None), task["id"]


def test_the_splits_share_no_task_and_no_words() -> None:
    found = [task for split in ("train", "val", "test") for task in tasks(split)]
    assert len(found) >= 30
    assert len({task["id"] for task in found}) == len({task["input"]["words"] for task in found}) == len(found)
    assert min(len(tasks(split)) for split in ("train", "val", "test")) >= 10


@pytest.mark.parametrize(
    ("old", "new", "problem", "example"),
    [
        ("0 <= i <= n", "0 <= i < n", "holds when the loop begins", {"n": 0}),
        ("2 * total ==", "total ==", "still holds after a turn", {}),
        ("i += 1", "i += 2", "still holds after a turn", {}),
        ("invariant(0 <= i <= n)", "invariant(i >= 0)", "ensures", {}),
        ("decreases(n - i)", "decreases(i)", "gets smaller", {}),
        ("decreases(n - i)", "decreases(5 - i)", "is at least 0", {}),
        ("return total", "return total + 1", "ensures", {}),
        ("return total", "pass", "returns a result on every path", {}),
        ("while i < n", "while i != n + 1", "does not hold", {}),
    ],
)
def test_a_wrong_program_or_claim_is_refused_with_a_counterexample(
    verify: Callable[..., Any], old: str, new: str, problem: str, example: dict[str, int]
) -> None:
    assert old in TRIANGLE
    verdict = of_triangle(verify, TRIANGLE.replace(old, new))
    found = [finding for finding in verdict.findings if problem in finding.problem]
    assert found, str(verdict)
    assert found[0].counterexample
    assert example.items() <= found[0].counterexample.items()
    assert "counterexample: " in str(verdict)


def test_a_loop_that_never_ends_proves_nothing(verify: Callable[..., Any]) -> None:
    """Of partial correctness it would prove anything."""
    program = """
def triangle(n):
    i = 0
    while 0 == 0:
        invariant(0 == 0)
        decreases(i)
        i = i + 1
"""
    assert "gets smaller" in str(of_triangle(verify, program))


def test_facts_on_what_a_loop_does_not_change_are_kept(verify: Callable[..., Any]) -> None:
    program = """
def twice_square(n):
    total = 0
    i = 0
    while i < n:
        invariant(0 <= i <= n)
        invariant(total == 2 * i * n)
        decreases(n - i)
        j = 0
        row = 0
        while j < n:
            invariant(0 <= j <= n)
            invariant(row == 2 * j)
            decreases(n - j)
            j += 1
            row += 2
        i += 1
        total += row
    return total
"""
    assert verify("twice_square(n)", ["n >= 0"], ["result == 2 * n * n"], program).proved
    again = program.replace("row += 2", "row += 2\n            i += 0")
    assert not verify("twice_square(n)", ["n >= 0"], ["result == 2 * n * n"], again).proved


def test_a_changed_argument_is_not_what_the_contract_speaks_of(verify: Callable[..., Any]) -> None:
    program = "def more(n):\n    n = n + 1\n    return n"
    assert verify("more(n)", [], ["result == n + 1"], program).proved
    assert verify("more(n)", [], ["result == n"], program).findings[0].counterexample
    down = """
def zero(n):
    taken = 0
    while n > 0:
        invariant(n + taken == old(n))
        invariant(n >= 0)
        decreases(n)
        n, taken = n - 1, taken + 1
    return taken
"""
    assert verify("zero(n)", ["n >= 0"], ["result == n"], down).proved


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os\ndef triangle(n):\n    return 1", "one function"),
        ("def triangle(n):\n    return __import__('os').getcwd()", "not part of the language"),
        ("def triangle(n):\n    print(n)\n    return 1", "there are only assignments"),
        ("def triangle(n):\n    return n.real", "not part of the language"),
        ("def triangle(n):\n    return n * n", "multiplies only by a number"),
        ("def triangle(n):\n    return n // 2", "does not divide"),
        ("def triangle(n):\n    if n > 0:\n        x = 1\n    return x", "'x' may have no value"),
        ("def triangle(n):\n    while n > 0:\n        n -= 1\n    return n", "begin with invariant"),
        ("def triangle(n):\n    while n > 0:\n        invariant(n >= 0)\n        n -= 1\n    return n", "decreases"),
        ("def triangle(n, m):\n    return n", "the function should be: def triangle(n)"),
        ("def other(n):\n    return n", "the function should be: def triangle(n)"),
        ("def triangle(n):\n    for i in range(n):\n        pass\n    return n", "there are only assignments"),
        ("def triangle(n):\n    return n < 1", "should be a whole number"),
        ("def triangle(n):\n    return 1.5", "not part of the language"),
        ("def triangle(n):\n  return ((", "line 2"),
        ("def triangle(n):\n    return " + "-" * 3000 + "n", ""),
        ("def triangle(n):\n    print(" + "-" * 3000 + "n)", ""),
        ("def triangle(n):\n    invariant(n > 0)\n    return n", "head of a loop"),
        ("def triangle(n=1):\n    return n", "the function should be"),
        ("def triangle(n):\n    old = 1\n    return n", "no name for a variable"),
        ("", "one function"),
        ("I cannot do that.", "no program"),
        ("\x00", "no program"),
    ],
)
def test_what_is_no_program_of_the_language_is_refused_in_words(
    verify: Callable[..., Any], program: str, said: str
) -> None:
    verdict = of_triangle(verify, program)
    assert not verdict.proved
    assert said in str(verdict)


def test_a_program_that_would_blow_up_the_prover_is_refused_in_time(verify: Callable[..., Any]) -> None:
    """No two variables are multiplied, so what is put in for a variable stays linear."""
    doubled = "".join("    n = 1000000000 * n + n\n" for _ in range(55))
    assert not of_triangle(verify, f"def triangle(n):\n{doubled}    return n").proved


def test_contracts_are_compared_both_ways(modules: Callable[[str], ModuleType]) -> None:
    compare, contract = modules("proving").compare, modules("contracts").Contract
    wanted = contract.parse("clamp(x, low, high)", "requires low <= high\nensures result == max(low, min(x, high))")

    def against(text: str) -> tuple[Any, Any]:
        return compare(contract.parse("clamp(x, low, high)", text), wanted)

    same = "ensures low <= result <= high\nensures implies(low <= x <= high, result == x)\n"
    assert against("requires low <= high\n" + same)[1] is not None, "5 is allowed for x = 9, low = 1, high = 7"
    full = same + "ensures implies(x < low, result == low)\nensures implies(x > high, result == high)"
    assert against("requires low <= high\n" + full) == (None, None)
    too_much, too_little = against("requires low < high\n" + full)
    assert too_little is None
    assert too_much.counterexample["low"] == too_much.counterexample["high"]


# Programs without loops: a proof against running them

NUMBERS = st.integers(-20, 20)
OPERANDS = st.sampled_from(["a", "b", "x", "0", "1", "2", "-3", "7"])
SUMS = st.builds("{} {} {}".format, OPERANDS, st.sampled_from(["+", "-"]), OPERANDS)
VALUES = st.one_of(
    OPERANDS,
    SUMS,
    st.builds("{} * ({})".format, st.sampled_from(["2", "-1", "3"]), SUMS),
    st.builds("max({}, {})".format, SUMS, OPERANDS),
    st.builds("abs({})".format, SUMS),
    st.builds("({} if {} < {} else {})".format, SUMS, OPERANDS, SUMS, OPERANDS),
)
CONDITIONS = st.builds("{} {} {}".format, VALUES, st.sampled_from(["<", "<=", "==", "!=", ">"]), SUMS)
CLAIMS = st.one_of(
    st.builds(
        "result {} {}".format, st.sampled_from(["<", "<=", "==", "!=", ">="]), SUMS.map(lambda s: s.replace("x", "a"))
    ),
    st.builds("result % {} == {}".format, st.sampled_from([2, 3, 5]), st.integers(0, 2)),
    st.builds("result // {} <= {}".format, st.sampled_from([2, 3]), st.sampled_from(["a", "b", "4"])),
)


@st.composite
def bodies(draw: st.DrawFn, depth: int = 2) -> list[str]:
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            inner = [f"    {line}" for line in draw(bodies(depth=depth - 1))]
            other = [f"    {line}" for line in draw(bodies(depth=depth - 1))]
            lines += [f"if {draw(CONDITIONS)}:", *inner, "else:", *other]
        else:
            name = draw(st.sampled_from(["x", "a", "x, a"]))
            value = f"{draw(VALUES)}, {draw(VALUES)}" if "," in name else draw(VALUES)
            lines.append(draw(st.sampled_from([f"{name} = {value}", f"return {draw(VALUES)}"])))
    return lines


def ran(program: str, a: int, b: int) -> int:
    """What a program that this file made gives; nothing that a model wrote is ever run."""
    space: dict[str, Any] = {}
    exec(program, space)
    return int(space["f"](a, b))


@settings(max_examples=40)
@given(body=bodies(), claim=CLAIMS, pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=10, max_size=10))
def test_proofs_and_counterexamples_hold_when_the_program_is_run(
    verify: Callable[..., Any], body: list[str], claim: str, pairs: list[tuple[int, int]]
) -> None:
    program = "\n".join(["def f(a, b):", "    x = 0", *(f"    {line}" for line in body), "    return x"])
    verdict = verify("f(a, b)", ["a <= b"], [claim], program)

    def kept(a: int, b: int) -> bool:
        return bool(eval(claim, {"a": a, "b": b, "result": ran(program, a, b)}))

    if verdict.proved:
        assert all(kept(a, b) for a, b in pairs if a <= b), program
    else:
        found = verdict.findings[0].counterexample
        assert found or "limits" in str(verdict), f"{verdict}\n{program}"
        if found:
            assert not kept(found.get("a", 0), found.get("b", 0)), f"{verdict}\n{program}"


LOOP = """
def f(a, b):
    x = {start}
    i = 0
    while i {sign} b:
        invariant({first})
        invariant({second})
        decreases(b - i)
        i += {step}
        x += {add}
    return x
"""
INVARIANTS = st.sampled_from(
    [
        "0 <= i",
        "i <= b",
        "i < b",
        "i <= b + 1",
        "x == a + i",
        "x >= a",
        "x == i * 2",
        "x <= 2 * i + a",
        "x % 2 == 0",
        "i % 2 == 0",
    ]
)


@settings(max_examples=40)
@given(
    start=st.sampled_from(["a", "0", "1"]),
    sign=st.sampled_from(["<", "<=", "!="]),
    first=INVARIANTS,
    second=INVARIANTS,
    step=st.sampled_from([1, 2]),
    add=st.sampled_from(["1", "2", "i", "0"]),
    claim=st.sampled_from(
        ["result >= a", "result == a + b", "result == 2 * b", "result % 2 == 0", "result <= 2 * b + a + 2"]
    ),
)
def test_a_proved_loop_keeps_its_invariants_its_promise_and_ends(
    verify: Callable[..., Any], start: str, sign: str, first: str, second: str, step: int, add: str, claim: str
) -> None:
    program = LOOP.format(start=start, sign=sign, first=first, second=second, step=step, add=add)
    if not verify("f(a, b)", ["a >= 0", "b >= 0"], [claim], program).proved:
        return
    watched = program.replace("        invariant(", "        check(").replace("decreases(b - i)", "measure(b - i)")
    for a in range(5):
        for b in range(7):
            measures: list[int] = []

            def check(held: bool) -> None:
                assert held, watched

            def measure(value: int, told: list[int] = measures) -> None:
                assert value >= 0, watched
                assert not told or value < told[-1], watched
                told.append(value)

            space: dict[str, Any] = {"check": check, "measure": measure}
            exec(watched, space)
            assert eval(claim, {"a": a, "b": b, "result": space["f"](a, b)}), watched
