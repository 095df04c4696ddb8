"""A backend whose policy truly learns (``softmax_policy``), served over HTTP by a real socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from softmax_policy import SoftmaxPolicy

from coterie.interfaces import PolicyUpdate, TrainingRow
from coterie.testing import Reply, ScriptedModel, toy_text
from coterie.testing.wire_format import ChatShape, WrittenAnswer
from coterie.vocabulary import Endpoint


class SoftmaxBackend:
    """Use it as a context manager: the server runs within. ``successes`` is the exact success of each published version."""

    def __init__(self, policy: SoftmaxPolicy, *, deaf_after: int | None = None) -> None:
        """``deaf_after``: after this version the server counts on but keeps its weights."""
        self.policy = policy
        self.deaf_after = deaf_after
        self.version = 0
        self.served = policy.weights
        self.successes = [policy.success()]
        self.loaded: list[str] = []
        self.model = ScriptedModel(self._answer)

    def __enter__(self) -> Self:
        self.model.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.model.stop()

    async def serve(self) -> Mapping[str, Endpoint]:
        return {"team": Endpoint(self.model.base_url, "softmax", "team")}

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        numbered = [(_number(toy_text(row.prompt_ids)), row) for row in rows]
        figures = self.policy.update(numbered)
        return PolicyUpdate(policy, len(rows), sum(len(row.response_ids) for row in rows), figures)

    async def values(self, policy: str, rows: Sequence[TrainingRow]) -> Sequence[Sequence[float]]:
        return [[0.0] * len(row.response_ids) for row in rows]

    async def publish(self, policy: str) -> int:
        self.version += 1
        self.model.policy_version = self.version
        if self.deaf_after is None or self.version <= self.deaf_after:
            self.served = self.policy.weights
        self.successes.append(self.policy.success())
        return self.version

    async def save(self, folder: Path) -> Mapping[str, Any]:
        (folder / "team" / "model").mkdir(parents=True)
        np.save(folder / "team" / "model" / "weights.npy", self.policy.weights)
        (folder / "versions.json").write_text(json.dumps({"team": self.version}))
        return {"team": self.version}

    async def load(self, folder: Path) -> Mapping[str, int]:
        self.loaded.append(folder.name)
        self.policy.weights = self.served = np.load(folder / "team" / "model" / "weights.npy")
        self.version += 1
        self.model.policy_version = self.version
        return {"team": self.version}

    async def close(self) -> None: ...

    def _answer(self, request: dict[str, Any]) -> Reply:
        number = _number(request["messages"][-1]["content"])
        text, logprobs = self.policy.answer(number, self.served, self.version)
        written = WrittenAnswer.of(request, number=0, text=text, tool_calls=(), finish_reason=None)
        body: Any = ChatShape().body(written)
        # The end of the message is no choice of this policy.
        choice = body["choices"][0]
        choice["token_ids"] = choice["token_ids"][: len(logprobs)]
        choice["logprobs"]["content"] = [
            {**entry, "logprob": value} for entry, value in zip(choice["logprobs"]["content"], logprobs, strict=False)
        ]
        return Reply(body=body)


def _number(text: str) -> int:
    """The class that a question is about: ``class 3?``."""
    return int(text.partition("class ")[2].partition("?")[0])
