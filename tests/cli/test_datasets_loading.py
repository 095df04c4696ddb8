"""Tasks from JSONL and Hugging Face files; errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.datasets import load_split, load_splits
from coterie_trainers.sections import Dataset, Source

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


def write(folder: Path, *records: Any, name: str = "tasks.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
    return path


def load(folder: Path, source: Source | str = "tasks.jsonl") -> list[Task]:
    return load_split(source, folders=[folder], dataset_name="d", split="train")


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5, unique_by=json.dumps))
def test_what_is_written_is_loaded_and_ids_are_stable(tmp_path_factory, pairs: list[tuple[Any, Any]]):
    folder = tmp_path_factory.mktemp("d")
    write(folder, *({"input": input_, "reference": reference} for input_, reference in pairs))
    tasks = load(folder)
    assert [(task.input, task.reference) for task in tasks] == pairs
    assert len({task.id for task in tasks}) == len(tasks)
    write(folder, *({"reference": reference, "input": input_} for input_, reference in reversed(pairs)))
    assert [task.id for task in reversed(load(folder))] == [task.id for task in tasks]


def test_fields_empty_lines_and_limit(tmp_path: Path):
    write(tmp_path, {"id": 7, "input": "a", "metadata": {"family": "f"}}, "\n", {"input": "b"}, {"input": "c"})
    first, second = load(tmp_path, Source(jsonl="tasks.jsonl", limit=2))
    assert (first.id, first.metadata, first.dataset, first.split) == ("7", {"family": "f"}, "d", "train")
    assert second.input == "b"


def test_folders_are_searched_in_order(tmp_path: Path):
    (tmp_path / "work").mkdir()
    write(tmp_path / "work", {"input": "made"})
    folders = [tmp_path, tmp_path / "work"]
    assert load_split("tasks.jsonl", folders=folders, dataset_name="d", split="val")[0].input == "made"
    write(tmp_path, {"input": "given"})
    assert load_split("tasks.jsonl", folders=folders, dataset_name="d", split="val")[0].input == "given"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"input": 1}, "{broken\n"], r"tasks.jsonl, line 2, column 2: no JSON"),
        (
            [{"input": 1}, "[1]\n"],
            r"line 2: a task is an object with 'id', 'input', 'reference', 'metadata', not \[1\]",
        ),
        ([{"question": 1}], "line 1: the field 'input' is missing; there are: 'question'"),
        ([{"input": 1, "answer": 2}], "line 1: unknown field 'answer'.*put anything else into 'metadata'"),
        ([{"input": 1, "metadata": "x"}], "line 1: metadata = 'x' is no object"),
        ([{"input": 1, "id": True}], "line 1: id = True is no text"),
        ([{"input": 1, "id": "a"}, {"input": 2, "id": "a"}], "line 2: the task 'a' occurs twice, first in .*line 1"),
        ([{"input": 1}, "\n", {"input": 1}], "line 3: the task 'ta-.*' occurs twice, first in .*line 1"),
        ([], "dataset.train: tasks.jsonl holds no task"),
    ],
)
def test_each_mistake_names_its_line(tmp_path: Path, records: list[Any], expected: str):
    write(tmp_path, *records)
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path)


def test_missing_and_undecodable_files(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"there is no file tasks.jsonl. It was looked for in {tmp_path}"):
        load(tmp_path)
    (tmp_path / "tasks.jsonl").write_bytes(b'{"input": "\xff"}\n')
    with pytest.raises(ConfigError, match="line 1: the text is not UTF-8"):
        load(tmp_path)


def test_a_task_in_two_splits_is_refused(tmp_path: Path):
    write(tmp_path, {"input": 1}, {"input": 2}, name="a.jsonl")
    write(tmp_path, {"input": 3}, name="b.jsonl")
    write(tmp_path, {"input": 2}, name="c.jsonl")
    dataset = Dataset(train="a.jsonl", val="b.jsonl", test="c.jsonl")
    with pytest.raises(ConfigError, match="is in train and in test"):
        load_splits(dataset, folders=[tmp_path], name="d")
    write(tmp_path, {"input": 4}, name="c.jsonl")
    splits = load_splits(dataset, folders=[tmp_path], name="d")
    assert {split: len(tasks) for split, tasks in splits.items()} == {"train": 2, "val": 1, "test": 1}


@pytest.mark.train
class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _own_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def table(self) -> Any:
        import datasets

        return datasets.Dataset.from_list([{"input": "a", "id": "1"}, {"input": "b", "id": None}])

    def test_parquet_and_saved_folders(self, tmp_path: Path):
        import datasets

        self.table().to_parquet(tmp_path / "tasks.parquet")
        self.table().save_to_disk(tmp_path / "one")
        datasets.DatasetDict(train=self.table()).save_to_disk(tmp_path / "dict")
        (tmp_path / "folder").mkdir()
        self.table().to_parquet(tmp_path / "folder" / "train.parquet")
        for name in ("tasks.parquet", "one", "dict", "folder"):
            tasks = load(tmp_path, Source(datasets=name))
            assert [task.input for task in tasks] == ["a", "b"]
            assert tasks[0].id == "1"
            assert tasks[1].id.startswith("ta-")

    def test_errors_name_the_row_and_the_split(self, tmp_path: Path):
        import datasets

        datasets.Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "tasks.parquet")
        with pytest.raises(ConfigError, match=r"tasks\.parquet, split train, row 0: the field 'input' is missing"):
            load(tmp_path, Source(datasets="tasks.parquet"))
        datasets.DatasetDict(train=self.table()).save_to_disk(tmp_path / "dict")
        with pytest.raises(ConfigError, match=r"'dict' \(split 'gone'\) cannot be loaded"):
            load(tmp_path, Source(datasets="dict", split="gone"))
