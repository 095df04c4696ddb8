"""What an exported folder holds: one file a kind of record, and ``manifest.json``, by which it is verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError
from coterie.vocabulary import Attempt, Decision, Metrics, Resource, Reward, Rollout, Run, Span, Task, now_ns

FORMAT_VERSION = 1
"""Grows when files written by this version cannot be read by an older one."""
MANIFEST = "manifest.json"
KINDS: Mapping[str, type] = {
    "tasks": Task,
    "resources": Resource,
    "runs": Run,
    "metrics": Metrics,
    "decisions": Decision,
    "rollouts": Rollout,
    "attempts": Attempt,
    "spans": Span,
    "rewards": Reward,
}
"""Name of a file to what it holds, in the order in which they depend on each other."""


class Format(StrEnum):
    """How the files are written."""

    JSONL = "jsonl"
    """One JSON object a line, with the field names of ``coterie.vocabulary``."""
    JSONL_GZ = "jsonl.gz"
    """The same, compressed by gzip."""
    PARQUET = "parquet"
    """Columns for analysis; free JSON as text, token ids as lists. Needs the extra ``parquet``."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an export."""

    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was exported, and when."""

    format: Format
    files: Mapping[str, FileEntry]
    """Kind of record to its file, ``KIND.FORMAT``."""
    scope: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, such as ``{"run_id": …}``; empty for all."""
    created_ns: int = field(default_factory=now_ns)
    format_version: int = FORMAT_VERSION

    @property
    def records(self) -> int:
        """The number of records of all kinds."""
        return sum(entry.records for entry in self.files.values())

    def file_of(self, folder: Path, kind: str) -> Path:
        """Where the records of a kind are."""
        return folder / f"{kind}.{self.format.value}"

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        text = json.dumps({"name": "coterie export", **asdict(self)}, indent=1) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an exported folder.

        Raises:
            ConfigError: there is none, or it is of something else.
        """
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{folder}: there is no {MANIFEST}, so it is no finished `coterie export`. Name the folder that was "
                "given to it with --to."
            ) from None
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{folder / MANIFEST}: it cannot be read: {error}.") from error
        try:
            fields = json.loads(text)
            if fields.pop("name") != "coterie export":
                raise ValueError("it is of something else")
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise ConfigError(
                    f"{folder / MANIFEST}: it has format version {version!r}; this Coterie reads {FORMAT_VERSION}. "
                    "Import it with the version of Coterie that it was exported with, or a later one."
                )
            files = {kind: FileEntry(**entry) for kind, entry in fields.pop("files").items()}
            manifest = cls(format=Format(fields.pop("format")), files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{folder / MANIFEST}: it is no manifest of `coterie export`: {error}.") from error
        unknown = set(manifest.files).symmetric_difference(KINDS)
        if unknown:
            raise ConfigError(f"{folder / MANIFEST}: it lacks or does not know: {', '.join(sorted(unknown))}.")
        return manifest

    def verify(self, folder: Path) -> None:
        """Compare every file with what was written.

        Raises:
            ConfigError: a file is missing, cut short or changed.
        """
        for kind, entry in self.files.items():
            file = self.file_of(folder, kind)
            try:
                size, digest = checksum(file)
            except OSError as error:
                raise ConfigError(f"{file}: it cannot be read: {error}. Nothing was imported.") from error
            if size != entry.bytes:
                raise ConfigError(
                    f"{file}: it has {size:,} bytes where {entry.bytes:,} were exported, so it is not whole. "
                    "Copy the folder again. Nothing was imported."
                )
            if digest != entry.sha256:
                raise ConfigError(
                    f"{file}: it is not what was exported: its checksum differs. Copy the folder again. "
                    "Nothing was imported."
                )


def checksum(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()
