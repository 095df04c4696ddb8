"""Reading configurations: what is allowed comes through unchanged, every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie_trainers.config import LocalBackend, RayBackend, TrainConfig, Training
from coterie_trainers.config_file import load_config

BASE: dict[str, Any] = {
    "name": "x",
    "dataset": {"train": "a.jsonl", "val": "b.jsonl", "test": {"datasets": "org/data", "split": "test", "limit": 5}},
    "policies": {"team": {"model": "m"}},
}


def write(folder: Path, settings: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def message(folder: Path, settings: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, settings), overrides)
    assert "config.yaml" in str(caught.value) or "--set" in str(caught.value)
    return str(caught.value)


def test_a_small_config_gets_the_defaults(tmp_path: Path):
    config = load_config(write(tmp_path, BASE))
    assert config.training == Training()
    assert config.policies["team"].model == "m"


@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1.0),
    balance=st.none() | st.text("abc", min_size=1),
    seed=st.integers(-5, 5),
)
def test_what_is_written_is_read(tmp_path_factory, steps: int, rate: float, balance: str | None, seed: int):
    settings = {
        **BASE,
        "seed": seed,
        "training": {"steps": steps, "balance": balance},
        "policies": {"team": {"model": "m", "learning_rate": rate}},
    }
    config = load_config(write(tmp_path_factory.mktemp("c"), settings))
    assert (config.training.steps, config.seed) == (steps, seed)
    assert config.training.balance == balance
    assert config.policies["team"].learning_rate == pytest.approx(rate)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@given(steps=st.integers(1, 10**6))
def test_an_override_equals_the_same_in_the_file(tmp_path_factory, steps: int):
    folder = tmp_path_factory.mktemp("c")
    written = load_config(write(folder, {**BASE, "training": {"steps": steps}}))
    assert load_config(write(folder, BASE), [f"training.steps={steps}"]) == written


def test_overrides_are_yaml_and_the_last_counts(tmp_path: Path):
    overrides = [
        "policies.team.roles=[coder, reviewer]",
        "policies.team.learning_rate=1e-3",
        "training.steps=1",
        "training.steps=2",
        "training.balance=a=b",
    ]
    config = load_config(write(tmp_path, BASE), overrides)
    assert config.policies["team"].roles == ["coder", "reviewer"]
    assert config.policies["team"].learning_rate == 0.001
    assert config.training.steps == 2
    assert config.training.balance == "a=b"


def test_numbers_with_an_exponent_are_numbers_in_the_file(tmp_path: Path):
    text = yaml.safe_dump(BASE).replace("model: m", "model: m\n    learning_rate: 5e-4")
    assert load_config(write(tmp_path, text)).policies["team"].learning_rate == 0.0005


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trainning": {}}, "unknown key 'trainning'. Did you mean 'training'?"),
        ({"steps": 3}, "unknown key 'steps'. It belongs in 'training'."),
        ({"learning_rate": 3}, "'policies.<name>'"),
        ({"training": {"steps": 0}}, "training.steps = 0 is not allowed. It should be greater than 0."),
        ({"training": {"steps": True}}, "training.steps = True is not allowed."),
        ({"loss": {"clip_low": float("nan")}}, "loss.clip_low = nan is not allowed."),
        ({"loss": {"aggregation": "sum"}}, "'seq-mean-token-mean', 'token-mean', 'seq-mean-token-sum' or"),
        ({"clip_low": 0.2}, "It belongs in 'loss'."),
        ({"runner": 3}, "runner = 3 is not allowed. It is a mapping of: where, concurrency, deadline_seconds"),
        ({"runner": None}, "runner = None is not allowed."),
        ({"policies": {}}, "policies = {} is not allowed."),
        ({"policies": {"a": {"model": "m", "role": "x"}}}, "unknown key 'policies.a.role'. Did you mean 'roles'?"),
        ({"policies": {"a": {"model": "m"}, "b": {"model": "m"}}}, "plays all"),
        (
            {"policies": {"a": {"model": "m", "roles": ["x"]}, "b": {"model": "m", "roles": ["x"]}}},
            "the role 'x' is played by 'a' and by 'b'",
        ),
        ({"guard": {"gradient": {"warn": 20}}}, "Warn (20) must not be above stop (10)."),
        ({"guard": {"entropy": {"stpo": 1}}}, "unknown key 'guard.entropy.stpo'. Did you mean 'stop'?"),
        ({"metrics": ["wandbb"]}, "It should be 'tensorboard', 'wandb', 'mlflow' or 'trackio'."),
        ({"dataset": {"train": "a", "val": "b"}}, "the key 'dataset.test' is missing."),
        ({"dataset": {"train": "a", "val": "b", "test": {"jsonl": "c", "datasets": "d"}}}, "exactly one"),
        ({"dataset": {"train": "a", "val": "b", "test": {"json": "c"}}}, "unknown key 'dataset.test.json'."),
        ({"dataset": {"train": 3, "val": "b", "test": "c"}}, "dataset.train = 3 is not allowed."),
    ],
)
def test_each_mistake_names_the_key_and_what_is_allowed(tmp_path: Path, change: dict[str, Any], expected: str):
    assert expected in message(tmp_path, {**BASE, **change})


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ({"kind": "ray", "rank": 2}, "unknown key 'backend.rank'. Did you mean 'ranks'? Allowed here: max_model_len,"),
        ({"rank": 2}, "unknown key 'backend.rank'. Allowed here: max_model_len,"),
        ({"kind": "rai"}, "backend = {'kind': 'rai'} is not allowed. It should have the kind 'local' or 'ray'."),
        ({"kind": "ray", "ranks": "two"}, "backend.ranks = 'two' is not allowed. It should be a valid integer"),
        ({"kind": "ray", "ranks": {"team": 0}}, "backend.ranks.team = 0 is not allowed. It should be greater than 0."),
        ({"kind": "ray", "replicas": {"tam": 2}}, "ackend.replicas: there is no policy 'tam'; there are: team."),
        ({"kind": "ray", "nodes": 2, "ranks": 3}, "anks (3) cannot be spread equally over 2 nodes."),
        ({"kind": "ray", "address": "ray://head:10001"}, "ray:// is for clients outside: start on a node"),
        ({"kind": "ray", "address": "head"}, "It should be auto, or the cluster's address as host:port."),
    ],
)
def test_the_kind_says_what_a_backend_may_have(tmp_path: Path, backend: dict[str, Any], expected: str):
    told = message(tmp_path, BASE | {"backend": backend})
    assert expected in told
    assert "settings are wrong" not in told


def test_a_key_that_stands_in_the_file_is_not_repeated(tmp_path: Path):
    hosted = {"base_url": "https://models.example.com/v1", "model": "big", "api_key": "sk-very-secret"}
    said = message(
        tmp_path, {**BASE, "policies": {**BASE["policies"], "judge": {"roles": ["judge"], "hosted": hosted}}}
    )
    assert "policies.judge.hosted.api_key" in said
    assert "env:" in said
    assert "sk-very-secret" not in said


def test_a_backend_without_kind_is_the_local_one(tmp_path: Path):
    assert load_config(write(tmp_path, BASE | {"backend": {"max_num_seqs": 3}})).backend == LocalBackend(max_num_seqs=3)
    ray = RayBackend(ranks={"team": 2}, verl={"engine": {"param_offload": True}})
    assert load_config(write(tmp_path, BASE | {"backend": ray.model_dump(mode="json")})).backend == ray


def test_several_mistakes_are_told_at_once(tmp_path: Path):
    told = message(tmp_path, {**BASE, "trainning": {}, "seed": "x", "runner": {"concurrency": -1}})
    assert "3 settings are wrong" in told
    assert all(key in told for key in ("trainning", "seed = 'x'", "runner.concurrency = -1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "holds a list"),
        ("a: [1,\nb: 2\n", "(while parsing a flow sequence, line 1, column 4)"),
        ("name: x\nname: y\n", "the key 'name' is given twice, first in line 1"),
        ("training:\n  steps: 1\n  steps: 2\n", "line 3, column 3"),
        ("name: !!python/object/apply:os.system ['true']\n", "line 1, column 7"),
        ("? [a]\n: 1\n", "line 1"),
        ("name: \x07\n", "no YAML"),
    ],
)
def test_broken_yaml_is_explained(tmp_path: Path, text: str, expected: str):
    assert expected in message(tmp_path, text)


@pytest.mark.parametrize("override", ["training", "=3", "training..steps=3", "name.x=3", "training.steps=[1"])
def test_broken_overrides_are_explained(tmp_path: Path, override: str):
    assert f"--set {override}" in message(tmp_path, BASE, override)


def test_anchors_and_merges_work(tmp_path: Path):
    policies = "policies:\n  a: &a {model: m, roles: [x]}\n  b: {<<: *a, roles: [y]}\n"
    config = load_config(
        write(tmp_path, yaml.safe_dump({**BASE, "policies": None}).replace("policies: null\n", policies))
    )
    assert (config.policies["b"].model, config.policies["b"].roles) == ("m", ["y"])


def test_a_folder_is_no_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    )
)
def test_whatever_is_given_is_a_config_or_a_config_error(tmp_path_factory, value: Any):
    path = tmp_path_factory.mktemp("c") / "config.yaml"
    for settings in (value, {**BASE, "dataset": value}, {**BASE, "training": value}, {**BASE, "policies": value}):
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        try:
            assert isinstance(load_config(path), TrainConfig)
        except ConfigError as error:
            told = str(error)
            assert "config.yaml" in told
