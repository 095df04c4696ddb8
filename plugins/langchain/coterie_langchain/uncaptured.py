"""What LangChain tells about an LLM call, for a call that capture did not see on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from coterie.announced import AnnouncedCall
from coterie.uncaptured import ToldAnswer, ToldCall
from coterie.vocabulary import JSON


def told_call(
    announced: AnnouncedCall,
    messages: Sequence[Any],
    parameters: Mapping[str, Any],
    metadata: Mapping[str, Any],
    start_ns: int,
) -> ToldCall:
    """A call as the callback announces it.

    Args:
        announced: who makes it.
        messages: LangChain's messages, or the prompt's text alone.
        parameters: how the model is invoked: model, temperature, tools.
        metadata: the run's, with what LangChain says about the model.
        start_ns: nanoseconds since the epoch.
    """
    return ToldCall(
        announced,
        start_ns,
        messages=partial(_as_openai, messages),
        model=parameters.get("model") or parameters.get("model_name") or metadata.get("ls_model_name"),
        provider=metadata.get("ls_provider"),
        parameters={
            "temperature": parameters.get("temperature", metadata.get("ls_temperature")),
            "max_tokens": parameters.get("max_tokens", metadata.get("ls_max_tokens")),
            "top_p": parameters.get("top_p"),
            "seed": parameters.get("seed"),
        },
        tools=parameters.get("tools") or (),
    )


def told_answer(result: Any) -> ToldAnswer:
    """The answer in an ``LLMResult``."""
    generations = result.generations[0] if result.generations else []
    answers = [message for g in generations if (message := getattr(g, "message", None)) is not None]
    first = answers[0] if answers else None
    about: Mapping[str, Any] = getattr(first, "response_metadata", None) or {}
    output: Mapping[str, Any] = result.llm_output or {}
    usage = getattr(first, "usage_metadata", None) or {}
    counted = output.get("token_usage") or {}
    return ToldAnswer(
        messages=_as_openai(answers) if answers else [{"role": "assistant", "content": g.text} for g in generations],
        text=generations[0].text if generations else "",
        id=about.get("id") or output.get("id"),
        model=about.get("model_name") or about.get("model") or output.get("model_name"),
        finish_reasons=[str(reason) for g in generations if (reason := _finish_reason(g))],
        input_tokens=usage.get("input_tokens", counted.get("prompt_tokens")),
        output_tokens=usage.get("output_tokens", counted.get("completion_tokens")),
    )


def _as_openai(messages: Sequence[Any]) -> Sequence[Mapping[str, JSON]]:
    from langchain_core.messages import convert_to_openai_messages

    plain = [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
    converted = convert_to_openai_messages(plain)
    return converted if isinstance(converted, list) else [converted]


def _finish_reason(generation: Any) -> Any:
    message = getattr(generation, "message", None)
    about = (getattr(message, "response_metadata", None) or {}) | (generation.generation_info or {})
    return about.get("finish_reason") or about.get("stop_reason")
