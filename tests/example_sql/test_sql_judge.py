from __future__ import annotations

import pytest
from judge import judge
from plans import Plan

GOLD = Plan(("albums", "artists"), "album", ("artist = 'Iris'",), "top year desc")
WRONG = Plan(("albums", "artists"), "album", ("artist = 'Iris'",), "top year asc")
REFERENCE = {"sql": GOLD.sql, "ordered": True}


def run(plans: list[str], queries: list[str], review: str) -> dict[str, float]:
    return judge(REFERENCE, {"question": "?", "plans": plans, "queries": queries, "review": review})


@pytest.mark.parametrize(
    ("plans", "queries", "review", "team", "analyst", "coder", "reviewer"),
    [
        pytest.param([GOLD], [GOLD], f"{GOLD} : ok", 1, 1, 1, 1, id="all right"),
        pytest.param([WRONG], [WRONG], f"{GOLD} : ok", 0, 0, 1, 0, id="wrong plan, accepted"),
        pytest.param([WRONG, GOLD], [WRONG, GOLD], f"{GOLD} : fix", 1, 0, 1, 1, id="wrong plan, corrected"),
        pytest.param(
            [WRONG, WRONG], [WRONG, WRONG], f"{WRONG} : fix", 0, 0, 1, 0.5, id="rightly sent back with a wrong plan"
        ),
        pytest.param([GOLD, GOLD], [GOLD, GOLD], f"{GOLD} : fix", 1, 1, 1, 0.5, id="right, sent back for nothing"),
        pytest.param([GOLD, WRONG], [GOLD, WRONG], f"{WRONG} : fix", 0, 1, 1, 0, id="right, spoilt by the reviewer"),
        pytest.param([GOLD], [WRONG], f"{GOLD} : ok", 0, 1, 0, 0, id="coder's slip, accepted"),
        pytest.param([GOLD, GOLD], [WRONG, GOLD], f"{GOLD} : fix", 1, 1, 0.5, 1, id="coder's slip, corrected"),
        pytest.param([WRONG], [GOLD], f"{GOLD} : ok", 1, 0, 0, 1, id="right by disobedience"),
        pytest.param([GOLD], [GOLD], "looks good", 1, 1, 1, 0, id="an unclear review accepts, and is none"),
        pytest.param(["rubbish"], [GOLD], f"{GOLD} : ok", 1, 0, 1, 1, id="no plan: the coder is judged by the truth"),
        pytest.param(["rubbish", "rubbish"], ["", ""], "rubbish : fix", 0, 0, 0, 0.5, id="rubbish all along"),
    ],
)
def test_truth_table(
    plans: list[Plan | str],
    queries: list[Plan | str],
    review: str,
    team: float,
    analyst: float,
    coder: float,
    reviewer: float,
) -> None:
    sql = [query.sql if isinstance(query, Plan) else query for query in queries]
    assert run([str(plan) for plan in plans], sql, review) == {
        "team": team,
        "analyst": analyst,
        "coder": coder,
        "reviewer": reviewer,
    }


def test_another_way_to_the_same_rows_is_right() -> None:
    sql = "SELECT album FROM albums WHERE artist_id = (SELECT artist_id FROM artists WHERE artist = 'Iris') ORDER BY -year LIMIT 1"
    assert run([str(GOLD)], [sql], f"{GOLD} : ok")["team"] == 1


def test_a_plan_that_means_nothing_in_this_database_is_wrong() -> None:
    plan = Plan(("albums", "artists"), "nonsense", (), None)
    assert run([str(plan)], [GOLD.sql], f"{GOLD} : ok") == {"team": 1, "analyst": 0, "coder": 1, "reviewer": 1}
