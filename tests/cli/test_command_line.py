"""The console script, in processes of its own: what a person sees who does something wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COTERIE = Path(sys.executable).with_name("coterie")
CONFIG = """
name: tiny
dataset: {train: tasks.jsonl, val: tasks.jsonl, test: tasks.jsonl}
policies: {team: {model: model}}
"""
APP = """
import coterie

@coterie.rollout
def team(task):
    return 1.0
"""


def coterie(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COTERIE, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that refused: exit code 2, an error, no traceback, nothing on standard output."""
    assert result.returncode == 2, result
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


def test_help_shows_all_commands_and_imports_nothing_heavy(tmp_path: Path):
    program = (
        "import sys\n"
        "from coterie.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'langgraph', 'sqlalchemy', 'pydantic', 'coterie_trainers'} & set(sys.modules)\n"
        "print('RESULT', code, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    shown, _, result = done.stdout.partition("RESULT")
    assert result.split(maxsplit=1) == ["0", "[]\n"]
    assert all(command in shown for command in ("doctor", "demo", "report", "train"))
    assert "reinforcement learning" in shown


def test_version_and_unknown_command(tmp_path: Path):
    version = coterie("--version", cwd=tmp_path)
    assert version.returncode == 0
    assert version.stdout.startswith("coterie 0.")
    unknown = coterie("trian", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "train" in unknown.stderr


def test_missing_config_names_those_that_are_there(project: Path):
    message = refused(coterie("train", "app.py:team", "conf.yaml", cwd=project))
    assert "conf.yaml" in message
    assert "config.yaml" in message


def test_broken_yaml_is_located(project: Path):
    (project / "config.yaml").write_text("name: x\ndataset: [unclosed\npolicies: {}\n")
    assert "config.yaml, line 3, column 9" in refused(coterie("train", "app.py:team", "config.yaml", cwd=project))


def test_unknown_key_wrong_type_and_bad_override(project: Path):
    message = refused(coterie("train", "app.py:team", "config.yaml", "--set", "training.step=5", cwd=project))
    assert "unknown key 'training.step'" in message
    assert "Did you mean 'steps'?" in message
    message = refused(coterie("train", "app.py:team", "config.yaml", "--set", "training.steps=many", cwd=project))
    assert "training.steps = 'many' is not allowed" in message
    assert "--set nonsense" in refused(coterie("train", "app.py:team", "config.yaml", "--set", "nonsense", cwd=project))


def test_app_that_does_not_import_shows_the_line(project: Path):
    (project / "app.py").write_text("import coterie\n1 / 0\n")
    message = refused(coterie("train", "app.py:team", "config.yaml", cwd=project))
    assert "ZeroDivisionError" in message
    assert "app.py, line 2" in message
    assert "there is no file" in refused(coterie("train", "other.py:team", "config.yaml", cwd=project))
    (project / "app.py").write_text(APP)
    assert "there is no 'crew'" in refused(coterie("train", "app.py:crew", "config.yaml", cwd=project))


def test_debug_shows_the_traceback_wherever_it_stands(project: Path):
    for result in (
        coterie("train", "app.py:team", "missing.yaml", "--debug", cwd=project),
        coterie("--debug", "train", "app.py:team", "missing.yaml", cwd=project),
        coterie("train", "app.py:team", "missing.yaml", cwd=project, COTERIE_DEBUG="1"),
    ):
        assert result.returncode == 1
        assert "Traceback" in result.stderr
        assert "ConfigError" in result.stderr


def test_report_without_a_store_and_with_a_missing_one_makes_none(tmp_path: Path):
    assert "--store" in refused(coterie("report", cwd=tmp_path))
    assert "There is no store gone.db" in refused(coterie("report", "--store", "gone.db", cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path):
    program = (
        "import sys; from importlib.metadata import PackageNotFoundError\n"
        "import coterie.cli.extras as extras\n"
        "extras.installed_version = lambda name: None\n"
        "from coterie.cli import main; main(['report'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert 'pip install "coterie[train]"' in refused(done)


def test_a_command_whose_module_is_missing_names_the_extra(tmp_path: Path):
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "import coterie.cli.extras as extras; extras.installed_version = lambda name: '99'\n"
        "from coterie.cli import main; main(['report'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert 'pip install "coterie[train]"' in refused(done)


def test_ctrl_c_exits_with_130_and_no_traceback(tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow():\n    '''Wait.'''\n    print('up', flush=True); time.sleep(60)\n"
    )
    program = (
        "import importlib.metadata as m, coterie.cli.commands as commands\n"
        "commands.entry_points = lambda group: [m.EntryPoint('slow', 'slow:slow', group)]\n"
        "from coterie.cli import main; main(['slow'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "Stopped.\n"


def test_doctor_in_words_and_as_json(tmp_path: Path):
    words = coterie("doctor", cwd=tmp_path)
    assert words.returncode == 0
    assert "shared memory" in words.stdout
    findings = json.loads(coterie("doctor", "--json", cwd=tmp_path).stdout)
    by_name = {(finding["area"], finding["name"]): finding for finding in findings}
    assert by_name["software", "Python"]["status"] == "ok"
    assert {"train", "verl", "langchain"} <= {name for area, name in by_name if area == "extras"}
    assert all(finding["advice"] for finding in findings if finding["status"] != "ok")


def test_doctor_exits_with_1_where_runs_cannot_be_written():
    result = coterie("doctor", "--out", "/proc/nowhere", cwd=Path("/"))
    assert result.returncode == 1
    assert "cannot be written" in result.stdout
