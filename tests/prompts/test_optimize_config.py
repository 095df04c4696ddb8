"""The configuration of ``coterie optimize``: what may be left empty, and mistakes in values of several shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.errors import ConfigError
from coterie_trainers.config_file import load_settings
from coterie_trainers.prompts import OptimizeConfig

BASE = "name: a\ndataset: {train: a.jsonl, val: b.jsonl, test: c.jsonl}\nbudget: {rollouts: 50}\n"


def loaded(folder: Path, more: str) -> OptimizeConfig:
    path = folder / "config.yaml"
    path.write_text(BASE + more)
    return load_settings(OptimizeConfig, path)


def test_an_optimiser_without_settings_may_be_written_either_way(tmp_path: Path) -> None:
    for text in ("optimiser: contrast", "optimiser: {contrast: {}}", "optimiser:\n  contrast:\n"):
        config = loaded(tmp_path, text)
        assert (config.optimiser_name, config.optimiser_settings) == ("contrast", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimiser: {contrast: 5}", r"optimiser.contrast = 5 is not allowed. It should be a valid dictionary"),
        ("optimiser: [contrast]", r"optimiser = \['contrast'\] is not allowed"),
        ("optimiser: {contrast: {}, gepa: {}}", "name one"),
        ("selection: {flagged: drop}", r"selection.flagged = .drop. is not allowed. It should be 'report' or 'refuse'"),
        ("prompts: {coder: {part: tols}}", r"tols.*'tool/<name of the tool>'\.(?!\.)"),
        ("selection: {confidence: 95}", "selection.confidence = 95 is not allowed. It should be less than 1"),
    ],
)
def test_a_mistake_is_said_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loaded(tmp_path, text)
