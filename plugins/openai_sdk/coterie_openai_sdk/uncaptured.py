"""What the SDK tells of an LLM call, for those that capture cannot see: other SDKs, websockets, models made by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.announced import AnnouncedCall
from coterie.capture.answers import read_answer
from coterie.capture.api import Api
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import JSON


def told_call(
    announced: AnnouncedCall, agent: Any, config: Any, system_prompt: str | None, input_items: Sequence[Any]
) -> ToldCall:
    """A call that an agent is about to make. ``config`` is the run's."""
    from coterie_openai_sdk.runs import setting

    model = setting(config, "model") or agent.model

    def parameters() -> Mapping[str, Any]:
        settings = agent.model_settings.resolve(setting(config, "model_settings"))
        return {name: getattr(settings, name, None) for name in ("temperature", "top_p", "max_tokens")}

    return ToldCall(
        announced=announced,
        start_ns=time.time_ns(),
        messages=lambda: _messages(system_prompt, input_items),
        model=model if isinstance(model, str) else getattr(model, "model", None),
        parameters=parameters,
        tools=lambda: [_definition(tool) for tool in agent.tools if hasattr(tool, "params_json_schema")],
    )


def record_answer(call: ToldCall, response: Any) -> None:
    """Record a call that was answered with ``response``, a ``ModelResponse``, unless capture saw it."""
    if call.announced.captured:
        return
    answer = read_answer(Api.RESPONSES, {"output": [_plain(item) for item in response.output]})
    record_told_answer(
        call,
        ToldAnswer(
            messages=answer.messages,
            text=answer.text,
            id=response.response_id,
            input_tokens=response.usage.input_tokens or None,
            output_tokens=response.usage.output_tokens or None,
            logprobs=answer.logprobs,
        ),
    )


def record_failed_call(call: ToldCall, error: BaseException | None) -> None:
    """Record a call that was under way when its run ended, unless capture saw it. ``error`` is what left the run."""
    call.announced.ended = True
    if error is None or isinstance(error, asyncio.CancelledError) or "Tripwire" in type(error).__name__:
        record_told_error(call, "The run ended before the answer came.")
    else:
        record_told_error(call, error)


def _messages(system_prompt: str | None, input_items: Sequence[Any]) -> list[Mapping[str, JSON]]:
    from agents.models.chatcmpl_converter import Converter

    items = [_plain(item) for item in input_items]
    try:
        messages: list[Any] = list(Converter.items_to_messages(items))
    except Exception:  # noqa: BLE001 - items that have no form in Chat Completions are told as they are
        messages = items
    return [{"role": "system", "content": system_prompt}, *messages] if system_prompt else messages


def _definition(tool: Any) -> JSON:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.params_json_schema}
    return {"type": "function", "function": function}


def _plain(item: Any) -> Any:
    dump = getattr(item, "model_dump", None)
    return dump(mode="json", exclude_none=True) if callable(dump) else item
