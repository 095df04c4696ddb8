"""The gate with adapters, before a model server that is made up: names, headers, and when an old version goes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from coterie_trainers.backends.local.gate import PolicyGate
from coterie_trainers.backends.local.server import lacks


class Server:
    """What the gate stands before: keeps what it was asked, and answers when it is let."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[str] = []
        self.lora_requests: dict[str, SimpleNamespace] = {}
        self.unloaded: list[int] = []
        self.errored = False
        self.state = SimpleNamespace(engine_client=self, openai_serving_models=self)
        self.gate = PolicyGate(self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(json.loads((await receive())["body"])["model"])
        await self.answers.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def load_lora_adapter(self, request: Any) -> Any:
        if not os.path.isdir(request.lora_path):  # noqa: ASYNC240 - in a folder of the test
            return SimpleNamespace(error=SimpleNamespace(message=f"no adapter in {request.lora_path}"))
        self.lora_requests[request.lora_name] = SimpleNamespace(lora_int_id=len(self.lora_requests) + 1)
        return "loaded"

    async def remove_lora(self, number: int) -> None:
        self.unloaded.append(number)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer secret")]
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers, "app": self}
        await self.gate(scope, receive, send)
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}

    async def chat(self, model: str) -> str:
        """The version that the headers name."""
        _, headers = await self.post("/v1/chat/completions", {"model": model})
        assert headers["x-coterie-policy-version"] == headers["x-coterie-policy-version-end"]
        return headers["x-coterie-policy-version"]

    async def load(self, policy: str, version: int, folder: Path) -> int:
        os.makedirs(folder, exist_ok=True)
        status, _ = await self.post("/coterie/adapter", {"policy": policy, "version": version, "folder": str(folder)})
        return status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    protocol = ModuleType("vllm.entrypoints.serve.lora.protocol")
    protocol.LoadLoRAAdapterRequest = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, protocol.__name__, protocol)
    monkeypatch.setenv("COTERIE_GATE_TOKEN", "secret")
    return Server()


async def test_a_name_leads_to_its_version_or_to_the_newest(server: Server, tmp_path: Path):
    for version in (0, 1, 2):
        assert await server.load("coder", version, tmp_path / f"coder@{version}") == 200
    assert await server.load("critic", 0, tmp_path / "critic@0") == 200
    names = ["coder@1", "coder@2", "coder", "coder@0", "coder@x", "critic", "guide"]
    assert [await server.chat(name) for name in names] == ["1", "2", "2", "2", "2", "0", "0"]
    assert server.asked == ["coder@1", "coder@2", "coder@2", "coder@2", "coder@2", "critic@0", "guide"]
    assert sorted(server.lora_requests) == ["coder@1", "coder@2", "critic@0"]


async def test_a_version_in_use_stays_until_its_last_call_has_ended(server: Server, tmp_path: Path):
    folders = [tmp_path / f"coder@{version}" for version in range(6)]
    await server.load("coder", 0, folders[0])
    server.answers.clear()
    calls = [asyncio.create_task(server.chat("coder@0")) for _ in range(2)]
    await asyncio.sleep(0)
    for version in (1, 2, 3):
        await server.load("coder", version, folders[version])
    assert sorted(server.lora_requests) == ["coder@0", "coder@2", "coder@3"]
    assert folders[0].is_dir()
    server.answers.set()
    assert await asyncio.gather(*calls) == ["0", "0"]
    assert sorted(server.lora_requests) == ["coder@2", "coder@3"]
    # The files of what was unloaded go with the next one that is.
    for version in (4, 5):
        await server.load("coder", version, folders[version])
    assert [folder.name for folder in folders if not folder.is_dir()] == ["coder@0", "coder@1", "coder@2"]
    assert len(server.unloaded) == 4


async def test_an_adapter_that_cannot_be_loaded_is_an_error_and_the_old_one_goes_on(server: Server, tmp_path: Path):
    await server.load("coder", 0, tmp_path / "coder@0")
    absent = {"policy": "coder", "version": 1, "folder": str(tmp_path / "absent")}
    assert (await server.post("/coterie/adapter", absent))[0] == 500
    assert await server.chat("coder") == "0"


def test_an_answer_without_what_training_needs_is_told():
    choice = {"token_ids": [1], "logprobs": {"content": [{"logprob": -1.0}]}}
    assert lacks({"prompt_token_ids": [1], "choices": [choice]}) == []
    assert lacks({"choices": [choice | {"logprobs": None}]}) == ["prompt_token_ids", "logprobs"]
    assert lacks({"prompt_token_ids": [1], "choices": [choice | {"token_ids": None}]}) == ["token_ids"]
