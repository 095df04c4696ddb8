"""Tasks from files: JSONL, a task a line, or a Hugging Face dataset.

A task has ``input``, and if wanted ``id``, ``reference`` and ``metadata``. A record without ``id`` gets one made of its
content, so that the same task keeps its id from run to run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError
from coterie.vocabulary import Task
from coterie_trainers.sections import Dataset, Source

FIELDS = ("id", "input", "reference", "metadata")
"""What a record may have; anything else is refused, since it would be lost."""


def load_splits(dataset: Dataset, *, folders: Sequence[Path], name: str) -> dict[str, list[Task]]:
    """The tasks of ``train``, ``val`` and ``test``, apart from each other.

    Raises:
        ConfigError: a source is missing, wrong or empty, or a task occurs in two splits.
    """
    splits = {
        split: load_split(getattr(dataset, split), folders=folders, dataset_name=name, split=split)
        for split in ("train", "val", "test")
    }
    owner: dict[str, str] = {}
    for split, tasks in splits.items():
        for task in tasks:
            if owner.setdefault(task.id, split) != split:
                raise ConfigError(
                    f"dataset: the task {task.id!r} is in {owner[task.id]} and in {split}. What is measured must not "
                    "be trained on: take it out of one."
                )
    return splits


def load_split(source: Source | str, *, folders: Sequence[Path], dataset_name: str, split: str) -> list[Task]:
    """The tasks of one split.

    Args:
        source: A path to a JSONL file, or a source.
        folders: Where a relative path is looked for, in this order.
        dataset_name: The tasks' ``dataset``.
        split: The tasks' ``split``.

    Raises:
        ConfigError: names the file and line (or the dataset and row), and what is wrong with it.
    """
    source = Source(jsonl=source) if isinstance(source, str) else source
    key = f"dataset.{split}"
    records = _jsonl(source.jsonl, folders, key) if source.jsonl is not None else _hugging_face(source, folders, key)
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    for place, record in itertools.islice(records, source.limit):
        task = _task(record, place=place, dataset=dataset_name, split=split)
        if task.id in seen:
            raise ConfigError(f"{place}: the task {task.id!r} occurs twice, first in {seen[task.id]}.")
        seen[task.id] = place
        tasks.append(task)
    if not tasks:
        raise ConfigError(f"{key}: {source.jsonl or source.datasets} holds no task.")
    return tasks


def _jsonl(name: str, folders: Sequence[Path], key: str) -> Iterator[tuple[str, Any]]:
    path = _find(name, folders)
    if path is None or not path.is_file():
        looked = ", ".join(str(folder) for folder in folders)
        raise ConfigError(f"{key}: there is no file {name}. It was looked for in {looked}.")
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield place, _parse(line, place)
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}.") from error


def _parse(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}, column {error.colno}: no JSON ({error.msg}). A line holds one task.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: the text is not UTF-8.") from None


def _hugging_face(source: Source, folders: Sequence[Path], key: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets  # slow to import, and an extra of its own
    except ModuleNotFoundError:
        raise ConfigError(f'{key}: datasets are not installed. Do: pip install "coterie[datasets]"') from None
    name = str(source.datasets)
    path = _find(name, folders)
    part = source.split or key.removeprefix("dataset.")
    try:
        if path is not None and path.suffix == ".parquet":
            rows = datasets.load_dataset("parquet", data_files={part: str(path)}, split=part)
        elif path is not None and (path / "state.json").exists():
            rows = datasets.load_from_disk(str(path))
        elif path is not None and (path / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(str(path))[part]
        else:
            rows = datasets.load_dataset(str(path or name), source.name, split=part)
    except Exception as error:
        raise ConfigError(f"{key}: the dataset {name!r} (split {part!r}) cannot be loaded: {error}") from error
    return ((f"{name}, split {part}, row {number}", dict(row)) for number, row in enumerate(_rows(rows)))


def _rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    # A table has every column in every row; a column that is empty in a row was not meant for it.
    return ({name: value for name, value in row.items() if value is not None} for row in rows)


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    """The first folder's path of this name that exists."""
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _task(record: Any, *, place: str, dataset: str, split: str) -> Task:
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: a task is an object with {_listed(FIELDS)}, not {_short(record)}.")
    if "input" not in record:
        raise ConfigError(f"{place}: the field 'input' is missing; there are: {_listed(record) or 'none'}.")
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise ConfigError(
            f"{place}: unknown field {unknown[0]!r}. A task has {_listed(FIELDS)}; put anything else into 'metadata'."
        )
    id_ = record.get("id")
    if id_ is not None and not (isinstance(id_, str | int) and not isinstance(id_, bool) and str(id_)):
        raise ConfigError(f"{place}: id = {_short(id_)} is no text.")
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ConfigError(f'{place}: metadata = {_short(metadata)} is no object, such as {{"family": "joins"}}.')
    content_id = _content_id(record, place)
    return Task(
        id=content_id if id_ is None else str(id_),
        input=record["input"],
        reference=record.get("reference"),
        dataset=dataset,
        split=split,
        metadata=metadata,
    )


def _content_id(record: Mapping[str, Any], place: str) -> str:
    try:
        content = json.dumps([record["input"], record.get("reference")], sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: the task cannot be written as JSON: {error}.") from None
    return f"ta-{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
