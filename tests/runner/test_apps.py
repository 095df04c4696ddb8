from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coterie.apps import load_app
from coterie.errors import ConfigError
from coterie.rollouts import RolloutFunction

GOOD = """
import coterie
from neighbour import VALUE

@coterie.rollout
def team(task):
    return VALUE

def plain(task):
    return 2.0

LIMIT = 3
"""


@pytest.fixture(autouse=True)
def _imports_are_undone():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("app_of_test", "neighbour", "packaged")):
            del sys.modules[name]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("VALUE = 0.25\n")
    file = tmp_path / "app_of_test.py"
    file.write_text(GOOD)
    return file


def test_loads_from_a_file_whose_neighbours_it_imports(app: Path) -> None:
    team = load_app(f"{app}:team")
    assert isinstance(team, RolloutFunction)
    assert team(None) == 0.25
    assert team.origin == f"{app}:team"
    assert load_app(f"{app}:team") is team
    assert load_app("app_of_test.py:team", folder=app.parent) is team


def test_a_plain_function_is_wrapped(app: Path) -> None:
    assert load_app(f"{app}:plain")(None) == 2.0


def test_loads_from_a_package(app: Path) -> None:
    package = app.parent / "packaged"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "teams.py").write_text(GOOD.replace("from neighbour", "from .values"))
    (package / "values.py").write_text("VALUE = 0.75\n")
    team = load_app("packaged.teams:team", folder=app.parent)
    assert team(None) == 0.75
    assert team.origin == "packaged.teams:team"


def test_two_files_of_one_name_are_two_apps(tmp_path: Path) -> None:
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "app_of_test.py").write_text(f"def team(task):\n    return {value}\n")
    assert load_app(f"{tmp_path}/a/app_of_test.py:team")(None) == 1.0
    assert load_app(f"{tmp_path}/b/app_of_test.py:team")(None) == 2.0


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (
            "import not_there_at_all\n",
            "team",
            ["No module named 'not_there_at_all'", "line 1: import not_there_at_all"],
        ),
        ("x = 1\ndef f():\n    return {}['k']\nf()\n", "team", ["KeyError: 'k'", "line 3: return {}['k']"]),
        ("def team(:\n", "team", ["SyntaxError", "app_of_test.py, line 1"]),
        ("raise SystemExit(2)\n", "team", ["SystemExit: 2", "if __name__"]),
        ("import json\njson.loads('{')\n", "team", ["JSONDecodeError", "line 2: json.loads('{')"]),
        (GOOD, "tema", ["there is no 'tema'", "Rollout functions there: team."]),
        (GOOD, "LIMIT", ["'LIMIT' is no function but int", "Rollout functions there: team."]),
        ("x = 1\n", "team", ["there is no 'team'", "No function there is marked with @coterie.rollout"]),
        ("def team(question):\n    return 1\n", "team", ["requires the parameter 'question'"]),
    ],
)
def test_errors_say_what_and_where(app: Path, text: str, name: str, says: list[str]) -> None:
    app.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_app(f"{app}:{name}")
    for words in says:
        assert words in str(caught.value).replace('"', "'").replace("', line", ", line"), caught.value


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("missing.py:team", "there is no file"),
        ("app.py", "write it as 'app.py:team'"),
        (":team", "write it as"),
        ("app.py:a.b", "write it as"),
        ("no_such_package.teams:team", "no module 'no_such_package'"),
    ],
)
def test_wrong_addresses(spec: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_app(spec)
