"""Putting a role's prompts into a request: its system text, its examples behind that, the descriptions of its tools.

The body is changed one level deep; messages, tools and system texts that change are replaced, never edited, so the user's
own objects stay as they are. What the program itself already sends is left in place: a prompt that it asked for with
``coterie.prompt`` or by injection may stand within a longer text, and one with placeholders only the program can fill.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from coterie.capture.api import Api
from coterie.capture.faults import warn_once
from coterie.prompts.parts import EXAMPLES, tool_part
from coterie.prompts.template import stands_in
from coterie.prompts.versions import PromptVersion, RolePrompts, UsedPrompts

Messages = Sequence[Any]


def with_prompts(
    api: Api, body: dict[str, Any], prompts: RolePrompts, *, handed_out: Collection[str] = ()
) -> UsedPrompts:
    """Put the prompts of the role that calls into a body; gives those that the body then has.

    Args:
        api: which API the body is for.
        body: changed one level deep.
        prompts: the role's.
        handed_out: names of the prompts that the program asked for itself.
    """
    if not api.has_messages:
        return UsedPrompts()
    system, parts = prompts.system, dict[str, PromptVersion]()
    if system is not None and not _is_sent(system, api, body, handed_out):
        system = _placed(system)
        if system is not None:
            _put_system(api, body, system.plain or "")
    examples = prompts.examples
    if examples is not None and not _is_sent(examples, api, body, handed_out):
        examples = _placed(examples)
        if examples is not None:
            _append_system(api, body, examples.plain or "")
    if examples is not None:
        parts[EXAMPLES] = examples
    for field in _TOOL_FIELDS:
        if prompts.tools and isinstance(body.get(field), list):
            body[field], described = _described(body[field], prompts.tools)
            parts |= {tool_part(tool): prompt for tool, prompt in described.items()}
    return UsedPrompts(system, parts)


def sent_prompts(
    messages: Messages, tools: Sequence[Any], prompts: RolePrompts, *, handed_out: Collection[str]
) -> UsedPrompts:
    """The prompts that a request has which was not changed here: the program put them in by itself.

    Args:
        messages: in the form of Chat Completions.
        tools: the definitions of the tools that were offered.
        prompts: the role's.
        handed_out: names of the prompts that the program asked for.
    """
    body = {"messages": messages}
    sent = {
        prompt.part: prompt
        for prompt in (prompts.system, prompts.examples)
        if prompt is not None and _is_sent(prompt, Api.CHAT, body, handed_out)
    }
    for tool in tools:
        prompt, described = prompts.tools.get(str(_own(tool).get("name"))), _own(tool).get("description")
        if prompt is not None and described == prompt.plain:
            sent[prompt.part] = prompt
    system = sent.pop(prompts.system.part, None) if prompts.system is not None else None
    return UsedPrompts(system, sent)


_TOOL_FIELDS = ("tools", "functions")
"""Where tools are defined; ``functions`` is the older name in Chat Completions."""


def _placed(prompt: PromptVersion) -> PromptVersion | None:
    """The prompt, if it can be put into a request as it is."""
    if prompt.placeholders:
        named = ", ".join(f"{{{{{name}}}}}" for name in prompt.placeholders)
        warn_once(
            f"{prompt.label} of role {prompt.role!r} has the placeholders {named}, which only the program can fill, so "
            f"the program's own {prompt.part} text was sent. Ask for it where the text is made: "
            f"coterie.prompt({prompt.role!r}, …)"
        )
        return None
    return prompt


def _is_sent(prompt: PromptVersion, api: Api, body: Mapping[str, Any], handed_out: Collection[str]) -> bool:
    """True if the program's own request has the prompt.

    A text that merely begins with it does not count unless the program asked for the prompt: a shorter version may
    well stand within the longer one that the program was written with.
    """
    if prompt.part == EXAMPLES and not prompt.text.strip():
        return True  # No examples: there is nothing to put in.
    system = _system_text(api, body)
    if prompt.plain is not None and prompt.name not in handed_out:
        if prompt.part == EXAMPLES:
            return system is not None and prompt.plain in system
        return system == prompt.plain
    texts = [system] if system is not None else []
    texts += [_text(message.get("content")) for message in _messages(api, body) if isinstance(message, Mapping)]
    return any(stands_in(prompt.text, text) for text in texts)


# Where a body has its system text

_MESSAGE_FIELDS = {Api.CHAT: "messages", Api.RESPONSES: "input", Api.MESSAGES: "messages"}


def _messages(api: Api, body: Mapping[str, Any]) -> Messages:
    given = body.get(_MESSAGE_FIELDS[api])
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return given if isinstance(given, list | tuple) else ()


def _system_at(api: Api, body: Mapping[str, Any]) -> tuple[str, int | None] | None:
    """The field of a body that holds the system text, and at which message of it; None if there is no such text."""
    field = {Api.RESPONSES: "instructions", Api.MESSAGES: "system"}.get(api)
    if field is not None and body.get(field) is not None:
        return field, None
    if api is Api.MESSAGES:
        return None
    given = body.get(_MESSAGE_FIELDS[api])
    for index, message in enumerate(given if isinstance(given, list | tuple) else ()):
        if isinstance(message, Mapping) and message.get("role") in ("system", "developer"):
            return _MESSAGE_FIELDS[api], index
    return None


def _system_text(api: Api, body: Mapping[str, Any]) -> str | None:
    at = _system_at(api, body)
    if at is None:
        return None
    field, index = at
    return _text(body[field] if index is None else body[field][index].get("content"))


def _put_system(api: Api, body: dict[str, Any], content: Any) -> None:
    """Put content in place of the system text, or before everything if there is none."""
    field, index = _system_at(api, body) or (None, None)
    if field is not None and index is not None:
        messages = list(body[field])
        messages[index] = {**messages[index], "content": content}
        body[field] = messages
    elif field is not None:
        body[field] = content
    elif api is Api.CHAT:
        body["messages"] = [{"role": "system", "content": content}, *(body.get("messages") or ())]
    else:
        body["instructions" if api is Api.RESPONSES else "system"] = content


def _append_system(api: Api, body: dict[str, Any], text: str) -> None:
    if not text:
        return
    at = _system_at(api, body)
    if at is None:
        _put_system(api, body, text)
        return
    field, index = at
    content = body[field] if index is None else body[field][index].get("content")
    if isinstance(content, list | tuple):
        kind = "input_text" if api is Api.RESPONSES else "text"
        _put_system(api, body, [*content, {"type": kind, "text": text}])
    else:
        _put_system(api, body, f"{content}\n\n{text}" if content else text)


def _text(content: Any) -> str:
    """The text of content, which may be in blocks."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list | tuple) else ()
    return "\n\n".join(str(block["text"]) for block in blocks if isinstance(block, Mapping) and block.get("text"))


# Tools


def _described(tools: list[Any], prompts: Mapping[str, PromptVersion]) -> tuple[list[Any], dict[str, PromptVersion]]:
    """Tools with the descriptions of their prompts, and which those were."""
    described: dict[str, PromptVersion] = {}

    def one(tool: Any) -> Any:
        if not isinstance(tool, Mapping):
            return tool
        for wrapper in ("function", "custom"):
            if isinstance(tool.get(wrapper), Mapping):
                return {**tool, wrapper: one(tool[wrapper])}
        if isinstance(tool.get("tools"), list):  # A namespace of tools, in Responses.
            return {**tool, "tools": [one(inner) for inner in tool["tools"]]}
        name = str(tool.get("name"))
        prompt = _placed(prompts[name]) if name in prompts else None
        if prompt is None:
            return tool
        described[name] = prompt
        return {**tool, "description": prompt.plain}

    return [one(tool) for tool in tools], described


def _own(tool: Any) -> Mapping[str, Any]:
    """A tool's own definition, without what it is wrapped in."""
    if not isinstance(tool, Mapping):
        return {}
    return next((tool[name] for name in ("function", "custom") if isinstance(tool.get(name), Mapping)), tool)
