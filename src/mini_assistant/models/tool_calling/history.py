"""Tool calls and outputs of earlier turns, for a model that knows no messages of that kind: as plain messages. Pure."""

import msgspec

from mini_assistant.models.base import ChatMessage, Emulation, ImagePart, RequestedToolCall, StoredImagePart, TextPart
from mini_assistant.models.tool_calling.json_text import fields_or_none, on_one_line

RESULTS_HEADING = "# Tool results"
"""The first line of a message that holds the outputs of calls."""


def plain_messages(messages: tuple[ChatMessage, ...], form: Emulation) -> tuple[ChatMessage, ...]:
    """The messages without tool calls and tool messages. A call stands in the shape in which the model would write it in this form.

    All outputs behind a message become one message of the user.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    plain: list[ChatMessage] = []
    outputs: list[ChatMessage] = []
    for message in messages:
        if message.role == "tool":
            outputs.append(message)
            continue
        plain += _results(outputs, names)
        outputs.clear()
        plain.append(_with_written_calls(message, form) if message.tool_calls else message)
    return (*plain, *_results(outputs, names))


def _with_written_calls(message: ChatMessage, form: Emulation) -> ChatMessage:
    calls = [_call_json(call) for call in message.tool_calls]
    if form == "text":
        written = "\n".join(f"<tool_call>{call}</tool_call>" for call in calls)
    else:
        written = f'{{"next_step": {{"tool_calls": [{", ".join(calls)}]}}}}'
    content = message.content
    if isinstance(content, str):
        return ChatMessage("assistant", f"{content}\n{written}" if content else written)
    return ChatMessage("assistant", (*content, TextPart(f"\n{written}" if content else written)))


def _call_json(call: RequestedToolCall) -> str:
    """The call on one line. Arguments that are no object are told as a string, as they were written."""
    is_object = fields_or_none(call.arguments) is not None
    arguments = on_one_line(call.arguments) if is_object else msgspec.json.encode(call.arguments).decode()
    return f'{{"name": {msgspec.json.encode(call.name).decode()}, "arguments": {arguments}}}'


def _results(outputs: list[ChatMessage], names: dict[str, str]) -> list[ChatMessage]:
    """One message with all outputs; none when there are none."""
    if not outputs:
        return []
    parts: list[TextPart | ImagePart | StoredImagePart] = [TextPart(RESULTS_HEADING)]
    for output in outputs:
        call_id = output.tool_call_id or ""
        head = f"\n\n{names.get(call_id, 'tool')} ({call_id}):\n"
        if isinstance(output.content, str):
            parts.append(TextPart(head + output.content))
        else:
            parts += [TextPart(head), *output.content]
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return [ChatMessage("user", "".join(texts) if len(texts) == len(parts) else tuple(parts))]
