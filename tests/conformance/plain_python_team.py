"""The described team without a framework: the OpenAI SDK, and blocks that say who acts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import openai

import coterie
from coterie.testing.described_team import TASK, TeamSetting


def offered(name: str, description: str, *parameters: str) -> Mapping[str, Any]:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


RUN_TESTS = offered("run_tests", "Run the tests of a file.", "path")
ASK_CODER = offered("ask_coder", "Ask the coder for a function.", "task")
TO_REVIEWER = offered("transfer_to_reviewer", "Hand over to the reviewer.")


@dataclass(frozen=True)
class Team:
    setting: TeamSetting
    client: openai.OpenAI
    async_client: openai.AsyncOpenAI

    def run(self) -> None:
        with coterie.agent("planner"):
            self._until_done("planner", TASK, [ASK_CODER, TO_REVIEWER], {"ask_coder": self._ask_coder})
            coterie.handoff("reviewer")
        with coterie.agent("reviewer"):
            self._until_done("reviewer", TASK, [], {})

    async def run_async(self) -> None:
        async with coterie.agent("planner"):
            said = await self._call(self._start("planner", TASK), [ASK_CODER, TO_REVIEWER])
            result = await self._ask_coder_async(**json.loads(said["tool_calls"][0]["function"]["arguments"]))
            messages = [*self._start("planner", TASK), said, self._result(said, result)]
            await self._call(messages, [ASK_CODER, TO_REVIEWER])
            coterie.handoff("reviewer")
        async with coterie.agent("reviewer"):
            await self._call(self._start("reviewer", TASK), [])

    @coterie.agent("coder")
    def _ask_coder(self, task: str) -> str:
        return self._until_done("coder", task, [RUN_TESTS], {"run_tests": coterie.tool(self.setting.run_tests)})

    @coterie.agent("coder")
    async def _ask_coder_async(self, task: str) -> str:
        messages = self._start("coder", task)
        said = await self._call(messages, [RUN_TESTS])
        run_tests = coterie.tool(self.setting.run_tests)
        result = run_tests(**json.loads(said["tool_calls"][0]["function"]["arguments"]))
        return (await self._call([*messages, said, self._result(said, result)], [RUN_TESTS]))["content"]

    def _until_done(self, role: str, task: str, tools: list[Any], functions: Mapping[str, Callable[..., str]]) -> str:
        messages = self._start(role, task)
        while True:
            said = self._sync_call(messages, tools)
            calls = [call for call in said.get("tool_calls") or () if call["function"]["name"] in functions]
            if not calls:
                return said["content"]
            result = functions[calls[0]["function"]["name"]](**json.loads(calls[0]["function"]["arguments"]))
            messages += [said, self._result(said, result)]

    def _start(self, role: str, task: str) -> list[Any]:
        return [{"role": "system", "content": self.setting.prompts[role]}, {"role": "user", "content": task}]

    def _result(self, said: Any, result: str) -> Any:
        return {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": result}

    def _sync_call(self, messages: list[Any], tools: list[Any]) -> Any:
        request = self._request(messages, tools)
        if not self.setting.streamed:
            return self.client.chat.completions.create(**request).choices[0].message.to_dict()
        return _joined([chunk.to_dict() for chunk in self.client.chat.completions.create(**request, stream=True)])

    async def _call(self, messages: list[Any], tools: list[Any]) -> Any:
        request = self._request(messages, tools)
        if not self.setting.streamed:
            return (await self.async_client.chat.completions.create(**request)).choices[0].message.to_dict()
        stream = await self.async_client.chat.completions.create(**request, stream=True)
        return _joined([chunk.to_dict() async for chunk in stream])

    def _request(self, messages: list[Any], tools: list[Any]) -> dict[str, Any]:
        return {"model": self.setting.model, "messages": messages} | ({"tools": tools} if tools else {})


def _joined(chunks: list[Any]) -> Any:
    """The message that a stream's chunks make."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        message["content"] += delta.get("content") or ""
        for part in delta.get("tool_calls") or ():
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": "function", "function": {"name": "", "arguments": ""}})
            calls[-1]["function"]["name"] += part["function"].get("name") or ""
            calls[-1]["function"]["arguments"] += part["function"].get("arguments") or ""
    return message


def team_of(setting: TeamSetting) -> Team:
    settings: dict[str, Any] = {
        "base_url": setting.base_url,
        "api_key": setting.api_key,
        "max_retries": setting.max_retries,
        "timeout": 30,
    }
    return Team(setting, openai.OpenAI(**settings), openai.AsyncOpenAI(**settings))
