"""What a model that is not given tools in the way of the API is told of them: a section at the end of the system message. Pure."""

from typing import Any

import msgspec

from mini_assistant.models.base import ChatMessage, Emulation, TextPart, ToolDefinition
from mini_assistant.models.tool_calling.next_step import object_schema
from mini_assistant.models.tool_calling.offer import Offer

_BY_JSON = "Answer with one JSON object and nothing else."
_REPLY_BY_JSON = 'To reply to the user: {"next_step": {"reply": %s}}'
_CALLS_BY_JSON = 'To call tools: {"next_step": {"tool_calls": [{"name": "NAME", "arguments": {...}}]}}'
_CALLS_BY_TEXT = """To call tools, write a line like this for each call, and nothing after it:
<tool_call>{"name": "NAME", "arguments": {...}}</tool_call>"""
_WITHOUT_CALL = "When you call no tool, answer in plain words."


def tools_section(offer: Offer, form: Emulation, reply_schema: dict[str, Any] | None) -> str:
    """The section. reply_schema: what the reply must be; None for text."""
    lines = ["# Tools", *(_by_text(offer, reply_schema) if form == "text" else _by_json(offer, reply_schema)), offer.demand]
    if offer.calls_max == 1:
        lines.append("Call no more than one tool at a time.")
    lines.append("The output of a tool comes in the next message. These are the tools, with the JSON schema of their arguments:")
    return "\n".join([*lines, *map(_tool_line, offer.tools)])


def with_section(messages: tuple[ChatMessage, ...], section: str) -> tuple[ChatMessage, ...]:
    """The messages with a section at the end of the system message, which is added when there is none."""
    if not messages or messages[0].role != "system":
        return (ChatMessage("system", section), *messages)
    first = messages[0]
    content = first.content
    parted = f"\n\n{section}" if content else section
    joined = content + parted if isinstance(content, str) else (*content, TextPart(parted))
    return (msgspec.structs.replace(first, content=joined), *messages[1:])


def _by_json(offer: Offer, reply_schema: dict[str, Any] | None) -> list[str]:
    if offer.is_demanded:
        return [_BY_JSON, _CALLS_BY_JSON]
    lines = [_BY_JSON, _REPLY_BY_JSON % ('"TEXT"' if reply_schema is None else "{...}"), _CALLS_BY_JSON]
    return lines if reply_schema is None else [*lines, f"The reply is a JSON object with this schema: {_json(reply_schema)}"]


def _by_text(offer: Offer, reply_schema: dict[str, Any] | None) -> list[str]:
    if offer.is_demanded:
        return [_CALLS_BY_TEXT]
    if reply_schema is None:
        return [_CALLS_BY_TEXT, _WITHOUT_CALL]
    return [_CALLS_BY_TEXT, f"When you call no tool, answer with nothing but a JSON object with this schema: {_json(reply_schema)}"]


def _tool_line(tool: ToolDefinition) -> str:
    return _json({"name": tool.name, "description": tool.description or "", "parameters": object_schema(tool.parameters)})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
