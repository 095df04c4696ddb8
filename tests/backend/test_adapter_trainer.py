"""Several adapters in one trainer, on real verl, in this process: as good as a trainer each, resumed, exported; folders refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from trainer_parts import columns, let_verl_be_imported, plan

from coterie.errors import ConfigError
from coterie_trainers.backends.local.model_folder import require_model, require_same_tokens
from coterie_trainers.config import Adapter, Kl, Loss, Policy
from coterie_trainers.exporting import export, trained_folder

pytestmark = [pytest.mark.train, pytest.mark.timeout(240)]

POLICIES = {
    "coder": {"learning_rate": 1e-2},
    "critic": {"learning_rate": 3e-2, "betas": (0.8, 0.9), "clip_grad": 0.5, "schedule": "linear"},
}


class Trainers:
    """Makes trainers of adapters on the tiny model."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder

    def of(self, *names: str, loss: Loss | None = None, **adapter: Any) -> Any:
        from coterie_trainers.backends.local.adapter_trainer import AdapterTrainer

        shape = {"rank": 4, "alpha": 8, **adapter}
        sections: Mapping[str, Any] = {
            name: Policy(model=str(self.model), adapter=Adapter(**shape), **POLICIES[name]).model_dump(mode="json")
            for name in names
        }
        for section in sections.values():
            section["schedule"]["steps"] = 4
        return AdapterTrainer(
            plan(self.model, loss or Loss(), adapter=Adapter(**shape).model_dump(mode="json"), policies=sections)
        )


@pytest.fixture(scope="module")
def trainers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trainer")
        let_verl_be_imported(patch, folder)
        yield Trainers(tiny_model, folder)


@pytest.fixture(scope="module")
def both(trainers: Trainers) -> Any:
    """Two policies in one trainer, after two updates each, in turn."""
    trainer = trainers.of("coder", "critic")
    for seed in (1, 2):
        for name in POLICIES:
            train(trainer, name, seed)
    return trainer


def train(trainer: Any, policy: str, seed: int) -> dict[str, float]:
    metrics: dict[str, float] = trainer.update(policy, columns=columns(seed=seed), temperature=1.0)["metrics"]
    return metrics


def weights(trainer: Any, policy: str, folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    trainer.write_adapter(policy, str(folder))
    return load_file(folder / "adapter_model.safetensors")


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def test_policies_that_share_a_trainer_learn_as_if_alone(trainers: Trainers, both: Any, tmp_path: Path):
    learned = {name: weights(both, name, tmp_path / name) for name in POLICIES}
    assert not same(learned["coder"], learned["critic"])
    for name in POLICIES:
        alone = trainers.of(name)
        for seed in (1, 2):
            train(alone, name, seed)
        assert same(weights(alone, name, tmp_path / f"{name}-alone"), learned[name])


def test_a_new_trainer_goes_on_bit_by_bit(trainers: Trainers, both: Any, tmp_path: Path):
    for name in POLICIES:
        both.save(name, _made(tmp_path / "checkpoint" / name))
    rates = {name: train(both, name, 3)["lr"] for name in POLICIES}
    assert rates == {"coder": pytest.approx(1e-2), "critic": pytest.approx(3e-2 * 2 / 4)}

    resumed = trainers.of("coder", "critic")
    for name in POLICIES:
        resumed.load(name, str(tmp_path / "checkpoint" / name))
    assert train(resumed, "critic", 3)["lr"] == rates["critic"]
    train(resumed, "coder", 3)
    for name in POLICIES:
        straight = weights(both, name, tmp_path / f"{name}-straight")
        assert same(weights(resumed, name, tmp_path / f"{name}-resumed"), straight)


def test_an_adapter_of_another_shape_is_refused(trainers: Trainers, both: Any, tmp_path: Path):
    both.save("coder", _made(tmp_path / "coder"))
    with pytest.raises(ValueError, match="another shape"):
        trainers.of("coder", rank=2).load("coder", str(tmp_path / "coder"))


def test_the_reference_is_the_model_under_the_adapter(trainers: Trainers):
    trainer = trainers.of("coder", loss=Loss(kl=Kl(coefficient=0.1)))
    assert train(trainer, "coder", 1)["kl_reference"] == pytest.approx(0, abs=1e-9)
    assert train(trainer, "coder", 1)["kl_reference"] > 1e-6


def test_dropout_is_that_of_the_configuration(trainers: Trainers, tmp_path: Path):
    trainer = trainers.of("coder", dropout=0.5)
    train(trainer, "coder", 1)
    plain = trainers.of("coder")
    train(plain, "coder", 1)
    assert not same(weights(trainer, "coder", tmp_path / "a"), weights(plain, "coder", tmp_path / "b"))
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_dropout"] == 0.5


def test_exported_and_merged_adapters_give_the_trainers_logits(trainers: Trainers, both: Any, tmp_path: Path):
    from coterie_trainers.backends.local.verl_rows import forward, rows_of

    rows = columns(seed=9)
    work = tmp_path / "work"
    both.save("coder", _made(work / "checkpoints" / "step-000003" / "coder"))
    wanted = forward(both._engine, rows_of(rows), "log_probs", temperature=1.0, limit=4096)
    source = trained_folder(work, "coder")
    export(source, tmp_path / "adapter")
    export(source, tmp_path / "merged", merged=True)

    assert largest_difference(rows, wanted, _loaded_by_peft(trainers.model, tmp_path / "adapter")) < 1e-5
    assert largest_difference(rows, wanted, _loaded(tmp_path / "merged")) < 1e-5
    assert largest_difference(rows, wanted, _loaded(trainers.model)) > 1e-2
    for folder in (tmp_path / "adapter", tmp_path / "merged"):
        assert (folder / "tokenizer.json").read_bytes() == (trainers.model / "tokenizer.json").read_bytes()


def test_a_vocabulary_that_is_too_small_is_refused(tiny_model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "small"))
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | {"vocab_size": shape["vocab_size"] - 3}))
    with pytest.raises(ConfigError, match=r"policies\.team\.model: .*the tokenizer has 103 tokens .* room for 100"):
        require_model("team", folder)


def test_other_tokens_than_the_files_are_refused(tiny_model: Path):
    with pytest.raises(ConfigError, match=r"policies\.team\.model: the server does not tokenize as .*'llama'"):
        require_same_tokens("team", tiny_model, [1, 2, 3])


def largest_difference(rows: Mapping[str, list[Any]], wanted: list[list[float]], model: Any) -> float:
    import torch

    differences = []
    for prompt, response, row in zip(rows["prompt_ids"], rows["response_ids"], wanted, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *response]])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        found = logprobs.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
        differences.append(float((found - torch.tensor(row)).abs().max()))
    return max(differences)


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _loaded_by_peft(model: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_loaded(model), adapter).eval()


def _made(folder: Path) -> str:
    folder.mkdir(parents=True)
    return str(folder)
