"""``coterie export-policy`` on folders as a run leaves them; adapters worked into their models are in tests/backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from coterie.errors import ConfigError
from coterie_trainers.exporting import export, export_policy, trained_folder

app = typer.Typer()
app.command()(export_policy)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two checkpoints of a whole policy and an adapter, and the first as result."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (model / name).write_text(f"{name} of the model")
    work = tmp_path / "work"
    for step in (3, 12):
        for policy in ("solver", "coder"):
            folder = work / "checkpoints" / f"step-{step:06d}" / policy / "model"
            folder.mkdir(parents=True)
            (folder / "weights").write_text(f"{policy} of step {step}")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    result = work / "policies" / "solver"
    result.mkdir(parents=True)
    (result / "weights").write_text("solver as it did best")
    return work


def test_the_result_comes_first_then_the_newest_checkpoint_or_the_one_of_a_step(work: Path, tmp_path: Path):
    def exported(policy: str, name: str, *more: str) -> str:
        answer = CliRunner().invoke(app, [str(work), policy, str(tmp_path / name), *more])
        assert answer.exit_code == 0, answer.output
        return (tmp_path / name / "weights").read_text()

    assert exported("solver", "a") == "solver as it did best"
    assert exported("coder", "b") == "coder of step 12"
    assert exported("solver", "c", "--step", "3") == "solver of step 3"


def test_an_adapter_has_its_tokenizer_beside_it(work: Path, tmp_path: Path):
    export(trained_folder(work, "coder"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "weights",
    ]


def test_what_is_not_there_is_said(work: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="no policy 'critic'; it trained: coder, solver"):
        trained_folder(work, "critic")
    with pytest.raises(ConfigError, match="no checkpoint of step 5; there are: 3, 12"):
        trained_folder(work, "coder", 5)
    with pytest.raises(ConfigError, match="no work folder"):
        trained_folder(tmp_path / "elsewhere", "coder")
    with pytest.raises(ConfigError, match="exists already"):
        export(trained_folder(work, "coder"), work)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"not there any more.*base_model_name_or_path"):
        export(trained_folder(work, "coder"), tmp_path / "out")
