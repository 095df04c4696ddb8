"""What ``prepare`` makes: real torch, real transformers, a few steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agents import ANALYST, CODER, REVIEWER
from demonstrations import demonstrate
from questions import SPLITS, make_splits

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_to_sql"

pytestmark = pytest.mark.train
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Told:
    """Remembers what progress was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done = 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        self.done += amount
        assert figures


def prepared(folder: Path, *, seed: int = 0, steps: int = 3) -> Told:
    from model import prepare

    told = Told()
    prepare(folder, seed=seed, progress=told, steps=steps, runs=160)
    return told


def weights(folder: Path) -> dict[str, Any]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder / "model").state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    prepared(path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """As the demo's own, from all demonstrations."""
    from model import RUNS

    from coterie_trainers.small_model import make_tokenizer

    return make_tokenizer(list(demonstrate(make_splits()["train"], RUNS, 0)))


def test_an_ordinary_hugging_face_folder(folder: Path) -> None:
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": ANALYST}, {"role": "user", "content": "what is the newest album of 'Iris'?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=4)
    assert answer.shape[1] > prompt["input_ids"].shape[1]


def test_the_data_files(folder: Path) -> None:
    splits = make_splits()
    for name in SPLITS:
        lines = (folder / "data" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [question.id for question in splits[name]]


def test_progress_is_told_to_its_end(tmp_path: Path) -> None:
    told = prepared(tmp_path, steps=23)
    assert told.stages[-1][1] == told.done == 23


def test_the_same_seed_gives_the_same_model_and_another_gives_another(folder: Path, tmp_path: Path) -> None:
    prepared(tmp_path / "again")
    prepared(tmp_path / "other", seed=1)
    one, again, other = weights(folder), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one)


def test_demonstrations_come_from_training_questions_alone() -> None:
    splits = make_splits()
    questions = splits["val"] + splits["test"]
    gold = {question.gold.sql for question in questions}
    plans = {str(question.gold) for question in questions}
    shown = list(demonstrate(splits["train"], 3000, 0, held_out=gold))
    assert not {demonstration.user.split("\n")[0] for demonstration in shown} & {each.text for each in questions}
    assert not {demonstration.answer.split(" : ")[0] for demonstration in shown} & (gold | plans)


def test_every_text_survives_the_tokenizer(tokenizer: Any) -> None:
    texts = [question.text for name in SPLITS for question in make_splits()[name]]
    texts += [ANALYST, CODER, REVIEWER, "naïve 東京 🎵\n\ttabs  and   spaces", "unseen words"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_value_is_one_token_the_same_in_question_plan_and_query(tokenizer: Any) -> None:
    for name in SPLITS:
        for question in make_splits()[name]:
            for value in question.values:
                literal = f" '{value}'" if isinstance(value, str) else f" {value}"
                token = tokenizer(literal, add_special_tokens=False)["input_ids"]
                assert len(token) == 1, literal
                for text in (question.text, str(question.gold), question.gold.sql):
                    assert token[0] in tokenizer(text, add_special_tokens=False)["input_ids"], (literal, text)


def test_a_call_fits_the_context_by_far(tokenizer: Any) -> None:
    from coterie_trainers.small_model import CONTEXT, encode

    lengths = [sum(map(len, encode(tokenizer, shown))) for shown in demonstrate(make_splits()["train"], 1000, 0)]
    assert max(lengths) < CONTEXT / 2


def test_killed_in_the_middle_and_started_again(tmp_path: Path, shop: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import model; from coterie_trainers.small_model import Lines; "
        "model.prepare(Path(sys.argv[1]), seed=0, progress=Lines(), steps=int(sys.argv[2]), runs=160)"
    )
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE), "SHOP_DATABASE": str(shop)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "100000"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 90
    for line in process.stdout:
        if line.startswith("warm start") or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    process.stdout.close()
    assert not (tmp_path / "model").exists(), "a folder that looks whole but is not"
    # And what a kill in the middle of saving leaves.
    (tmp_path / "model.unfinished").mkdir()
    (tmp_path / "model.unfinished" / "model.safetensors").write_bytes(b"half")
    prepared(tmp_path)
    assert weights(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model"]
