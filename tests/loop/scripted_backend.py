"""A backend whose model is scripted: real HTTP to a real socket, no weights. For tests of the loop, not of learning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.testing import ScriptedModel
from coterie.vocabulary import Endpoint


class ScriptedBackend:
    """Counts what it is asked to do; ``fail_at`` raises in that update, as a dying trainer would."""

    def __init__(self, model: ScriptedModel, *, token_ids: bool = True, fail_at: int | None = None) -> None:
        self.model = model
        self.token_ids = token_ids
        self.fail_at = fail_at
        self.updates: list[Sequence[TrainingRow]] = []
        self.judged: list[Sequence[TrainingRow]] = []
        self.loaded: list[str] = []
        self.version = 0
        self.closed = 0

    async def serve(self) -> Mapping[str, Endpoint]:
        return {"team": Endpoint(self.model.base_url, "scripted", "team", token_ids=self.token_ids)}

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        if len(self.updates) + 1 == self.fail_at:
            raise RuntimeError("the trainer is gone")
        self.updates.append(rows)
        return PolicyUpdate(policy, len(rows), 1, {"loss": 0.0, "grad_norm": 1.0, "mismatch_max": 0.0})

    async def values(self, policy: str, rows: Sequence[TrainingRow]) -> Sequence[Sequence[float]]:
        self.judged.append(rows)
        return [[0.5] * len(row.response_ids) for row in rows]

    async def publish(self, policy: str) -> int:
        self.version += 1
        return self.version

    async def save(self, folder: Path) -> Mapping[str, int]:
        (folder / "team" / "model").mkdir(parents=True)
        (folder / "versions.json").write_text(json.dumps({"team": self.version}))
        return {"team": self.version}

    async def load(self, folder: Path) -> Mapping[str, int]:
        self.loaded.append(folder.name)
        self.version = max(self.version + 1, json.loads((folder / "versions.json").read_text())["team"])
        return {"team": self.version}

    async def close(self) -> None:
        self.closed += 1
