"""Messages as OpenAI's chat API writes them, from the ways in which others do."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from coterie.foreign.attributes import as_text, list_of, mapping_of, numbered, parsed, text_of
from coterie.vocabulary import JSON

Message = dict[str, JSON]


def tool_call(name: JSON, arguments: JSON, call_id: JSON) -> Message:
    """A call of a tool as it stands in an assistant's message; no arguments are ``{}``."""
    function = {"name": as_text(name or ""), "arguments": as_text({} if arguments in (None, "") else arguments)}
    return {"id": as_text(call_id or ""), "type": "function", "function": function}


def from_parts(value: JSON, role: str) -> list[Message]:
    """Messages of the GenAI conventions, ``{"role", "parts": […]}``; those in OpenAI's form stay as they are.

    A plain text becomes one message of ``role``.
    """
    value = parsed(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    if isinstance(value, Mapping):
        value = [value]
    return [made for one in list_of(value) if isinstance(one, Mapping) for made in _from_one(one, role)]


def system_message(instructions: JSON) -> list[Message]:
    """The message of ``gen_ai.system_instructions``: a text, or parts. Empty if there are none."""
    value = parsed(instructions)
    text = value if isinstance(value, str) else "".join(_texts(list_of(value)))
    return [{"role": "system", "content": text}] if text else []


def finish_reasons(value: JSON) -> list[str]:
    """The reasons that stand on output messages of the GenAI conventions."""
    messages = [one for one in list_of(value) if isinstance(one, Mapping)]
    return [openai_reason(reason) for one in messages if (reason := text_of(one.get("finish_reason")))]


def openai_reason(reason: str) -> str:
    """OpenAI's word for why generation ended."""
    return {"tool_call": "tool_calls", "function_calls": "tool_calls"}.get(reason, reason)


def from_numbered(attributes: Mapping[str, JSON], prefix: str, inner: str, role: str) -> list[Message]:
    """Messages that were spread over attributes: ``prefix.0.{inner}role``, ``prefix.0.{inner}content`` and so on."""
    messages = []
    for item in numbered(attributes, prefix):
        fields = {name.removeprefix(inner): value for name, value in item.items()}
        message: Message = {"role": text_of(fields.get("role")) or role, "content": fields.get("content")}
        if message["content"] is None:
            parts = [_content_part(part) for part in numbered(fields, "contents")]
            only_text = all(part.get("type") == "text" for part in parts)
            message["content"] = "".join(as_text(part["text"]) for part in parts) if only_text and parts else parts
            message["content"] = message["content"] or None
        message |= {name: fields[name] for name in ("name", "tool_call_id") if text_of(fields.get(name))}
        calls = [_numbered_call(call) for call in numbered(fields, "tool_calls")]
        if calls:
            message["tool_calls"] = calls
        messages.append(message)
    return messages


def _numbered_call(call: Mapping[str, JSON]) -> Message:
    fields = {name.removeprefix("tool_call.").removeprefix("function."): value for name, value in call.items()}
    return tool_call(fields.get("name"), fields.get("arguments"), fields.get("id"))


def _content_part(part: Mapping[str, JSON]) -> Message:
    fields = {name.removeprefix("message_content."): value for name, value in part.items()}
    if "text" in fields:
        return {"type": "text", "text": fields["text"]}
    url = fields.get("image.image.url")
    return {"type": "image_url", "image_url": {"url": url}} if url else {"type": as_text(fields.get("type") or "")}


def _from_one(message: Mapping[str, JSON], role: str) -> list[Message]:
    if "parts" not in message:
        return [dict(message)]
    parts = [part for part in list_of(message["parts"]) if isinstance(part, Mapping)]
    role = text_of(message.get("role")) or role
    named = {"name": message["name"]} if text_of(message.get("name")) else {}
    answers = [part for part in parts if part.get("type") == "tool_call_response"]
    if answers:
        return [_tool_answer(part) | named for part in answers]
    calls = [
        tool_call(part.get("name"), part.get("arguments"), part.get("id"))
        for part in parts
        if part.get("type") == "tool_call"
    ]
    text = "".join(_texts(parts))
    written = _written_call(text)
    if written:
        calls, text = [*calls, written], ""
    made: Message = {"role": role, "content": text or None} | named
    return [made | {"tool_calls": calls} if calls else made]


def _tool_answer(part: Mapping[str, JSON]) -> Message:
    result = part.get("response", part.get("result", part.get("content")))
    return {"role": "tool", "tool_call_id": as_text(part.get("id") or ""), "content": as_text(result)}


def _texts(parts: Sequence[JSON]) -> list[str]:
    found = []
    for part in parts:
        fields = mapping_of(part)
        value = part if isinstance(part, str) else fields.get("content", fields.get("text"))
        if isinstance(value, str) and fields.get("type", "text") == "text":
            found.append(value)
    return found


def _written_call(text: str) -> Message | None:
    # The openai-agents-v2 package writes the repr of the SDK's object for a tool call.
    found = re.match(
        r"ResponseFunctionToolCall\(arguments=('(?:[^'\\]|\\.)*'), call_id='([^']*)', name='([^']*)'", text
    )
    if found is None:
        return None
    try:
        return tool_call(found[3], ast.literal_eval(found[1]), found[2])
    except (ValueError, SyntaxError):
        return None
