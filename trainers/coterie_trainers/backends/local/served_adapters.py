"""The adapters of one model server: a new version under a new name, old ones unloaded once nobody uses them.

A name is never used again: vLLM's prefix cache knows adapters by their name, and would answer with what an earlier one of
that name had computed. Files stay until the adapter is unloaded, because vLLM may read them again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KEPT = 2
"""Versions of a policy that are served: the newest, and the one before for rollouts that began with it."""


@dataclass(slots=True)
class ServedAdapter:
    """One version of one policy."""

    policy: str
    version: int
    folder: str
    """Where its files are."""
    in_flight: int = 0
    """Requests that it is answering."""

    @property
    def name(self) -> str:
        """The model name under which vLLM knows it."""
        return f"{self.policy}@{self.version}"


class ServedAdapters:
    """Which adapters are loaded, and which of them answers a call."""

    def __init__(self) -> None:
        self._by_policy: dict[str, list[ServedAdapter]] = {}
        """Policy → its versions, the newest last."""
        self._unloaded: list[str] = []
        """Folders of adapters that were unloaded, to be removed."""

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self._by_policy)

    def named(self, model: str) -> ServedAdapter | None:
        """The adapter that answers calls of a model name: ``policy@version``, or ``policy`` for the newest.

        A version that is no longer served is answered by the newest; the answer says so.
        """
        for versions in self._by_policy.values():
            for adapter in versions:
                if adapter.name == model:
                    return adapter
        versions = self._by_policy.get(model) or self._by_policy.get(model.rpartition("@")[0]) or []
        return versions[-1] if versions else None

    @contextlib.contextmanager
    def in_use(self, adapter: ServedAdapter) -> Iterator[None]:
        """Keep it loaded within the block."""
        adapter.in_flight += 1
        try:
            yield
        finally:
            adapter.in_flight -= 1

    async def add(self, engine: Any, models: Any, adapter: ServedAdapter) -> None:
        """Load it and make it the newest of its policy.

        Args:
            engine: vLLM's engine client.
            models: vLLM's ``OpenAIServingModels``.
            adapter: Of a version that its policy did not have yet.

        Raises:
            ValueError: vLLM refuses it.
        """
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        answer = await models.load_lora_adapter(
            LoadLoRAAdapterRequest(lora_name=adapter.name, lora_path=adapter.folder)
        )
        if not isinstance(answer, str):
            raise ValueError(answer.error.message)
        self._by_policy.setdefault(adapter.policy, []).append(adapter)
        await self.unload_old(engine, models)

    async def unload_old(self, engine: Any, models: Any) -> None:
        """Unload what is neither new nor in use."""
        for versions in self._by_policy.values():
            for adapter in [old for old in versions[:-KEPT] if old.in_flight == 0]:
                versions.remove(adapter)
                number = models.lora_requests.pop(adapter.name).lora_int_id
                await engine.remove_lora(number)
                # A request whose client has just gone may still be in the engine's hands: its files go next time.
                gone, self._unloaded = self._unloaded, [adapter.folder]
                for folder in gone:
                    shutil.rmtree(folder, ignore_errors=True)
