"""Spans of the OpenInference instrumentors: ``openinference.span.kind`` and messages spread over many attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coterie import conventions as c
from coterie.episodes import EdgeKind
from coterie.foreign.attributes import as_text, list_of, mapping_of, text_of, whole_of
from coterie.foreign.langgraph import agent_in, goto_targets, tool_output
from coterie.foreign.marks import with_attributes, with_edge
from coterie.foreign.messages import from_numbered, openai_reason
from coterie.vocabulary import JSON, Span

NAME = "openinference"

_KIND = "openinference.span.kind"


def recognises(span: Span) -> bool:
    """True for a span of OpenInference."""
    return _KIND in span.attributes


def translated(span: Span) -> Span:
    """The span with our attributes."""
    match str(span.attributes.get(_KIND)).upper():
        case "LLM":
            return _call(span)
        case "TOOL":
            return _tool(span)
        case "AGENT":
            return _agent(span)
        case "CHAIN":
            return _chain(span)
    return span


def _call(span: Span) -> Span:
    given = span.attributes
    settings = mapping_of(given.get("llm.invocation_parameters"))
    body = mapping_of(given.get("output.value"))
    inputs = from_numbered(given, "llm.input_messages", "message.", "user")
    outputs = from_numbered(given, "llm.output_messages", "message.", "assistant")
    reason = text_of(given.get("llm.finish_reason")) or text_of(_choice(body).get("finish_reason"))
    return with_attributes(
        span,
        {
            c.OPERATION: c.CHAT,
            c.AGENT_NAME: agent_in(_metadata(span)),
            c.PROVIDER: text_of(given.get("llm.provider")) or text_of(given.get("llm.system")),
            c.REQUEST_MODEL: text_of(settings.get("model")) or text_of(given.get("llm.model_name")),
            c.RESPONSE_MODEL: text_of(given.get("llm.model_name")),
            c.RESPONSE_ID: text_of(body.get("id")) or text_of(mapping_of(body.get("llm_output")).get("id")),
            c.REQUEST_TEMPERATURE: settings.get("temperature"),
            c.REQUEST_MAX_TOKENS: settings.get("max_tokens", settings.get("max_completion_tokens")),
            c.REQUEST_TOP_P: settings.get("top_p"),
            c.REQUEST_SEED: settings.get("seed"),
            c.INPUT_TOKENS: whole_of(given.get("llm.token_count.prompt")),
            c.OUTPUT_TOKENS: whole_of(given.get("llm.token_count.completion")),
            c.FINISH_REASONS: [openai_reason(reason)] if reason else None,
            c.INPUT_MESSAGES: as_text(inputs) if inputs else None,
            c.OUTPUT_MESSAGES: as_text(outputs) if outputs else None,
            **_tokens(body),
        },
    )


def _tokens(body: Mapping[str, JSON]) -> dict[str, JSON]:
    """What a server such as vLLM gives in the answer's body, which the instrumentor of the OpenAI SDK writes down whole."""
    choice = _choice(body)
    sampled = list_of(mapping_of(choice.get("logprobs")).get("content"))
    logprobs = [mapping_of(one).get("logprob") for one in sampled]
    return {
        c.PROMPT_TOKENS: list_of(body.get("prompt_token_ids")) or list_of(choice.get("prompt_token_ids")) or None,
        c.RESPONSE_TOKENS: list_of(choice.get("token_ids")) or None,
        c.LOGPROBS: logprobs or None,
    }


def _choice(body: Mapping[str, JSON]) -> Mapping[str, Any]:
    choices = list_of(body.get("choices"))
    return mapping_of(choices[0]) if choices else {}


def _tool(span: Span) -> Span:
    given = span.attributes
    name = text_of(given.get("tool.name"))
    result, call_id = tool_output(given.get("output.value"))
    if name is None and span.name.startswith("handoff to "):
        # OpenAI Agents: the agent that hands over stands as input, the one that gets control as output.
        target = text_of(given.get("output.value")) or span.name.removeprefix("handoff to ")
        return with_edge(span, EdgeKind.HANDOFF, text_of(given.get("input.value")), target)
    span = with_attributes(
        span,
        {
            c.OPERATION: c.EXECUTE_TOOL,
            c.AGENT_NAME: agent_in(_metadata(span)),
            c.TOOL_NAME: function_name(name or span.name),
            c.TOOL_CALL_ID: text_of(given.get("tool.id")) or text_of(given.get("tool_call.id")) or call_id,
            c.TOOL_ARGUMENTS: given.get("input.value"),
            c.TOOL_RESULT: as_text(result) if result is not None else None,
        },
    )
    for target in goto_targets(given.get("output.value")):
        span = with_edge(span, EdgeKind.HANDOFF, None, target)
    return span


def function_name(title: str) -> str:
    """A tool's name as the model got it: CrewAI's tools have titles (``Delegate work to coworker``)."""
    return re.sub(r"\W+", "_", title.lower()).strip("_") if " " in title else title


def _agent(span: Span) -> Span:
    name = text_of(span.attributes.get("agent.name")) or text_of(span.attributes.get("graph.node.id"))
    if name is None and span.parent_id is None:
        return with_attributes(span, {c.OPERATION: c.INVOKE_WORKFLOW, c.WORKFLOW_NAME: span.name})
    return with_attributes(span, {c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: name or span.name})


def _chain(span: Span) -> Span:
    """A run of LangChain's ``create_agent`` is the chain with the agent's own name."""
    agent = text_of(_metadata(span).get("lc_agent_name"))
    if agent is not None and agent == span.name:
        return with_attributes(span, {c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: agent})
    return span


def _metadata(span: Span) -> Mapping[str, JSON]:
    return mapping_of(span.attributes.get("metadata"))
