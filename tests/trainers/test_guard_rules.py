"""The rules of the guard: what each must say, what it must let pass, and that the guard is their sum."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.vocabulary import Metrics
from coterie_trainers.config import Guard
from coterie_trainers.health.good_version import good_steps, step_to_go_back_to
from coterie_trainers.health.guard import judge
from coterie_trainers.health.history import History
from coterie_trainers.health.rules import RULES
from coterie_trainers.health.verdict import Level, Verdict

FLAT = [0.5] * 20
FALLING = [0.52, 0.5, 0.51, 0.5, 0.52, 0.5, 0.51, 0.5, 0.46, 0.42, 0.38, 0.34]
SHAKY = [0.3, 0.7, 0.5, 0.3, 0.7, 0.5, 0.3, 0.7, 0.5, 0.3, 0.4, 0.5]
RISING = [0.1 + 0.03 * step for step in range(20)]


def history(looks: Mapping[int, float] | None = None, rollouts: int = 1000, **series: Sequence[float]) -> History:
    """Figures by name, a value a step from step 1; ``role__coder__entropy`` is ``role/coder/entropy``."""
    length = max((len(values) for values in series.values()), default=0)
    made = History()
    for step in range(1, max(length, *(looks or {0: 0})) + 1):
        values = {name.replace("__", "/"): given[step - 1] for name, given in series.items() if step <= len(given)}
        made.add(Metrics("run", step, {"rollouts": 64, "failed": 0, "groups": 16} | values))
    for step, success in (looks or {}).items():
        made.add(Metrics("run", step, {"success": success, "rollouts": rollouts}, stage="val"))
    return made


def verdict(made: History, **settings: Any) -> Verdict:
    return judge(made, Guard.model_validate(settings))


def said(made: History, **settings: Any) -> dict[tuple[str, str], Level]:
    return {(each.rule, each.subject): each.level for each in verdict(made, **settings).findings}


THE_RUN = "the run"
CODER = "role 'coder'"


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        # entropy: deep is a warning, half as deep stops where reward falls with it
        ({"entropy": [1, 1, 1, 0.2, 0.2, 0.2], "success": FLAT[:6]}, {("entropy", "the policy"): Level.WARN}),
        ({"entropy": [1, 0.2, 0.2, 0.2], "success": FLAT[:4]}, {("entropy", "the policy"): Level.WARN}),
        ({"entropy": [1, 1, 1, 0.4, 0.4, 0.4], "success": FLAT[:6]}, {}),
        ({"entropy": [1, 1, 1, 0.2, 0.2], "success": FLAT[:5]}, {}),
        ({"entropy": [1, 1, 1, 0.2, 0.2, 0.5], "success": FLAT[:6]}, {}),
        ({"entropy": [1, 1, 1, 0.2, 0.2, 0.2], "success": [0.95] * 6}, {}),
        ({"entropy": [0.0005, 0, 0, 0, 0, 0], "success": FLAT[:6]}, {}),
        ({"entropy": [1] * 9 + [0.4] * 3, "success": FALLING}, {("entropy", "the policy"): Level.STOP}),
        ({"entropy": [1] * 9 + [0.6] * 3, "success": FALLING}, {}),
        ({"entropy": [1] * 9 + [0.2] * 3, "success": FALLING}, {("entropy", "the policy"): Level.STOP}),
        ({"entropy": [1] * 9 + [0.4] * 3, "success": SHAKY}, {}),
        (
            {"role__coder__entropy": [1] * 9 + [0.4] * 3, "role__tester__entropy": [1] * 12, "success": FALLING},
            {("entropy", CODER): Level.STOP},
        ),
        ({"role__coder__entropy": [1] * 9 + [0.4] * 3, "role__coder__reward": FLAT[:12], "success": FALLING}, {}),
        # diversity
        ({"role__coder__diversity": [0.8] * 3 + [0.05] * 3, "success": FLAT[:6]}, {("diversity", CODER): Level.WARN}),
        ({"role__coder__diversity": [0.8] * 9 + [0.3] * 3, "success": FALLING}, {("diversity", CODER): Level.STOP}),
        # gradient
        ({"grad_norm": [1, 2, 1, 2, 1, 7, 7, 7]}, {("gradient", "the policy"): Level.WARN}),
        ({"grad_norm": [1, 2, 1, 2, 1, 20, 90, 300]}, {("gradient", "the policy"): Level.STOP}),
        ({"grad_norm": [1, 2, 1, 2, 1, 300, 1, 2]}, {}),
        ({"grad_norm": [1, 2, 300, 300, 300]}, {}),
        ({"grad_norm": [1, 1, math.nan]}, {("gradient", "the policy"): Level.STOP}),
        (
            {"big__grad_norm": [1, 1, math.inf], "small__grad_norm": [1, 1, 1]},
            {("gradient", "policy 'big'"): Level.STOP},
        ),
        # mismatch, clipping, staleness
        ({"mismatch_kl": [1e-6, 0.03, 0.03]}, {("mismatch", "the policy"): Level.WARN}),
        ({"mismatch_kl": [1e-6, 0.2, 0.3]}, {("mismatch", "the policy"): Level.STOP}),
        ({"mismatch_kl": [1e-6, 1e-6, 0.3]}, {}),
        ({"clip_fraction": [0.0, 0.4, 0.4, 0.4]}, {("clipping", "the policy"): Level.WARN}),
        ({"clip_fraction": [0.0, 0.7, 0.7, 0.7]}, {("clipping", "the policy"): Level.STOP}),
        ({"role__coder__staleness": [5, 5, 5]}, {("staleness", CODER): Level.WARN}),
        ({"role__coder__staleness": [9, 9, 9]}, {("staleness", CODER): Level.STOP}),
        # length
        ({"role__coder__length": [10] * 6 + [25] * 3, "success": FLAT[:9]}, {("length", CODER): Level.WARN}),
        ({"role__coder__length": [10] * 6 + [50] * 3, "success": FLAT[:9]}, {("length", CODER): Level.STOP}),
        ({"role__coder__length": [10] * 6 + [50] * 3, "success": RISING[:9]}, {("length", CODER): Level.WARN}),
        # errors
        ({"failed": [0, 4, 4, 4]}, {("errors", THE_RUN): Level.WARN}),
        ({"failed": [0, 3, 3, 3]}, {}),
        ({"failed": [0, 40, 40, 40]}, {("errors", THE_RUN): Level.STOP}),
        ({"role__coder__error_rate": [0.2, 0.2, 0.2]}, {("errors", CODER): Level.WARN}),
        # success
        ({"success": [0.8] * 6 + [0.1] * 3}, {("success", THE_RUN): Level.STOP}),
        ({"success": [0.8] * 6 + [0.1, 0.8, 0.8]}, {}),
        ({"success": [0.5] * 6 + [0.35] * 3}, {}),  # 15 points of 48 groups are chance
        ({"success": [0.5] * 6 + [0.35] * 3, "groups": [500] * 9}, {("success", THE_RUN): Level.WARN}),
        # a held-out verifier
        (
            {"verified": [0.5] * 3, "verifier_gap": [0.15] * 3, "verifier_gap_error": [0.01] * 3},
            {("verifier_gap", THE_RUN): Level.WARN},
        ),
        (
            {"verified": [0.5] * 3, "verifier_gap": [0.4] * 3, "verifier_gap_error": [0.05] * 3},
            {("verifier_gap", THE_RUN): Level.STOP},
        ),
        ({"verified": [0.5] * 3, "verifier_gap": [0.4] * 3, "verifier_gap_error": [0.2] * 3}, {}),
    ],
)
def test_each_rule_says_what_it_sees_and_no_other_speaks(series, expected):
    assert said(history(**series)) == expected


@pytest.mark.parametrize(
    ("looks", "rollouts", "level"),
    [
        ({2: 0.8, 4: 0.76}, 10_000, Level.OK),
        ({2: 0.8, 4: 0.72}, 10_000, Level.WARN),
        ({2: 0.8, 4: 0.65}, 10_000, Level.STOP),
        ({2: 0.8, 4: 0.65}, 40, Level.OK),  # chance
        ({2: 0.8, 4: 0.3}, 40, Level.STOP),
        ({4: 0.3}, 40, Level.OK),
    ],
)
def test_a_fall_on_validation_counts_beyond_its_margin_and_chance(looks, rollouts, level):
    assert verdict(history(looks, rollouts)).level is level


def test_a_look_is_judged_once():
    assert verdict(history({2: 0.8, 4: 0.2}, success=[0.5] * 5)).level is Level.OK


def test_a_verdict_names_the_step_at_which_the_trouble_began():
    made = history(entropy=[1] * 7 + [0.45, 0.4, 0.3, 0.2, 0.1], success=FALLING)
    assert verdict(made).level is Level.STOP
    assert verdict(made).since == 8
    (finding,) = verdict(made).findings
    assert finding.reason == "entropy fell to 0.1 nats a token, 10% of the 1 it began with, and reward falls with it"
    assert verdict(history(grad_norm=[1] * 5 + [6, 6, 11, 12, 13])).since == 6


def test_steps_that_were_taken_back_are_not_seen():
    rows = [Metrics("run", step, {"grad_norm": 1.0 if step < 5 else math.nan}) for step in range(1, 7)]
    assert judge(History.of(rows, until=4), Guard()).level is Level.OK
    assert judge(History.of(rows, until=6), Guard()).level is Level.STOP


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_can_be_switched_off_and_has_limits_of_its_own(rule):
    assert getattr(Guard(), rule) is not None
    bad = history(
        {8: 0.9, 9: 0.1},
        entropy=[1] * 3 + [0.01] * 6,
        role__coder__diversity=[1] * 3 + [0.01] * 6,
        role__coder__length=[1] * 3 + [100] * 6,
        role__coder__staleness=[50] * 9,
        grad_norm=[1] * 5 + [100] * 4,
        mismatch_kl=[1] * 9,
        clip_fraction=[1] * 9,
        failed=[64] * 9,
        success=[0.89] * 6 + [0.0] * 3,
        verified=[0.0] * 9,
        verifier_gap=[1.0] * 9,
    )
    assert {each.rule for each in verdict(bad).stops} == set(RULES)
    assert {each.rule for each in verdict(bad, **{rule: None}).stops} == set(RULES) - {rule}
    assert verdict(bad, **{rule: {"stop": None}}).level is Level.STOP
    gentle = {name: None for name in RULES if name != rule} | {rule: {"stop": None}}
    assert verdict(bad, **gentle).level is Level.WARN


def test_looks_at_a_steady_policy_seldom_stop_a_run():
    # Two standard errors would stop nearly every run of so many looks; four stop one in fifty.
    draw, stopped = random.Random(0), 0
    for _ in range(300):
        made, stops = History(), False
        for look in range(1, 41):
            success = sum(draw.random() < 0.7 for _ in range(96)) / 96
            made.add(Metrics("run", look, {}))
            made.add(Metrics("run", look, {"success": success, "rollouts": 96}, stage="val"))
            stops |= verdict(made).level is Level.STOP
        stopped += stops
    assert stopped <= 15


@given(st.integers(0, 2**32))
def test_noise_about_a_steady_level_is_no_alarm(seed):
    draw = random.Random(seed)
    made = history(
        entropy=[draw.lognormvariate(-2, 0.3) for _ in range(40)],
        grad_norm=[draw.lognormvariate(-1, 0.6) for _ in range(40)],
        success=[sum(draw.random() < 0.6 for _ in range(16)) / 16 for _ in range(40)],
        role__coder__length=[draw.lognormvariate(2, 0.2) for _ in range(40)],
    )
    assert verdict(made).level is not Level.STOP


def test_good_versions_are_within_the_margin_and_without_a_word_of_the_guard():
    looks = {10: 0.5, 20: 0.8, 30: 0.78, 40: 0.6, 50: 0.79}
    assert good_steps(looks, warned={50}, margin=0.05) == [0, 20, 30]
    assert good_steps({}, warned={}, margin=0.05) == [0]


def test_the_run_goes_back_to_the_newest_good_version_before_the_trouble():
    assert step_to_go_back_to([0, 20, 30], saved=[20, 30, 48, 49], since=45) == 30
    assert step_to_go_back_to([0, 20, 30], saved=[20, 30, 48, 49], since=30) == 20
    assert step_to_go_back_to([0], saved=[0, 3, 4], since=2) == 0
    assert step_to_go_back_to([0, 20], saved=[48, 49], since=47) == 48
    assert step_to_go_back_to([0], saved=[], since=1) is None
