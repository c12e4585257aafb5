"""From rows to the prompt of a turn. Pure: no database, no clock, no network.

A prompt is the instructions, the messages of the thread, and the turns of this run so far. Truncation drops messages of the thread
only: a tool call is never split from its output. Source: behaviour §2.4, §3.7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from mini_assistant.assistants.schema import FunctionTool, JsonObjectFormat, JsonSchemaFormat
from mini_assistant.models.base import ChatMessage, ImagePart, NamedTool, RequestedToolCall, StoredImagePart, TextPart, ToolDefinition
from mini_assistant.models.tokens import count_prompt_tokens
from mini_assistant.runs.citations import search_head_or_none, source_passages
from mini_assistant.runs.schema import (
    FileSearchToolCall,
    FunctionChoice,
    FunctionToolCall,
    MessageCreationDetails,
    Run,
    ToolCall,
)
from mini_assistant.runs.store import StepRecord
from mini_assistant.threads.schema import ImageFileContent, ImageUrlContent, Message, RefusalContent, TextContent

Choice = Literal["none", "auto", "required"] | NamedTool
"""Which tool the model may or must call in a turn."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a prompt is made of.

    instructions: None when there are none. history: messages from before the run, oldest first. turns: what this run has done.
    """

    instructions: str | None
    history: Sequence[ChatMessage]
    turns: Sequence[ChatMessage]

    @property
    def characters(self) -> int:
        """Roughly how long the texts are."""
        contents = [message.content for message in (*self.history, *self.turns)]
        return sum(len(content) if isinstance(content, str) else sum(map(len, _texts(content))) for content in contents)


def conversation(run: Run, messages: Sequence[Message], steps: Sequence[StepRecord]) -> Conversation:
    """Sort a thread's messages and a run's steps into a conversation.

    messages: oldest first, with those that the run has written. Steps of a turn that is still being written are left out.
    """
    history = [chat_message(message) for message in messages if message.run_id != run.id and message.content]
    if run.truncation_strategy.type == "last_messages" and run.truncation_strategy.last_messages is not None:
        history = history[-run.truncation_strategy.last_messages :]
    written = {message.id: message for message in messages if message.run_id == run.id}
    turns: list[ChatMessage] = []
    for number in sorted({record.turn for record in steps}):
        turns += _turn([record for record in steps if record.turn == number], written)
    return Conversation(run.instructions or None, history, turns)


def chat_message(message: Message) -> ChatMessage:
    """A message of a thread as the model reads it.

    Providers refuse images of assistants: the model is told of their figures by a line of text, and not of images by address.
    """
    parts: list[TextPart | ImagePart | StoredImagePart] = []
    for part in message.content:
        if isinstance(part, TextContent):
            parts.append(TextPart(part.text.value))
        elif isinstance(part, RefusalContent):
            parts.append(TextPart(part.refusal))
        elif isinstance(part, ImageUrlContent) and message.role == "user":
            parts.append(ImagePart(part.image_url.url, part.image_url.detail))
        elif isinstance(part, ImageFileContent):
            file_id, detail = part.image_file.file_id, part.image_file.detail
            parts.append(StoredImagePart(file_id, detail) if message.role == "user" else TextPart(f"[figure: {file_id}]"))
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return ChatMessage(message.role, parts[0].text)
    return ChatMessage(message.role, tuple(parts) if message.role == "user" else "\n\n".join(_texts(parts)))


def _texts(parts: Sequence[TextPart | ImagePart | StoredImagePart]) -> list[str]:
    return [part.text for part in parts if isinstance(part, TextPart)]


def _turn(records: Sequence[StepRecord], written: dict[str, Message]) -> list[ChatMessage]:
    """One turn of the model: its text and calls in one message, then the outputs of the calls."""
    texts: list[str] = []
    requested: list[RequestedToolCall] = []
    outputs: list[ChatMessage] = []
    for record in records:
        details = record.step.step_details
        if isinstance(details, MessageCreationDetails):
            message = written.get(details.message_creation.message_id)
            if message is not None and message.status != "in_progress" and message.content:
                texts.append(str(chat_message(message).content))
        elif record.step.status == "completed":
            for call in details.tool_calls:
                name, arguments, output = _call_texts(call, record.outputs)
                passages = source_passages(call, output) if isinstance(call, FileSearchToolCall) else ()
                requested.append(RequestedToolCall(call.id, name, arguments))
                outputs.append(ChatMessage("tool", output, tool_call_id=call.id, passages=passages))
    if not texts and not requested:
        return []
    return [ChatMessage("assistant", "\n\n".join(texts), tool_calls=tuple(requested)), *outputs]


def _call_texts(call: ToolCall, outputs: dict[str, str]) -> tuple[str, str, str]:
    """Name, arguments and output of a call, as the model reads them."""
    if isinstance(call, FunctionToolCall):
        return call.function.name, call.function.arguments, call.function.output or ""
    output = outputs.get(call.id, "")
    if isinstance(call, FileSearchToolCall):
        head = search_head_or_none(output)
        return "file_search", msgspec.json.encode({"queries": head.queries if head else []}).decode(), output
    return "code_interpreter", msgspec.json.encode({"code": call.code_interpreter.input}).decode(), output


def fitted_messages(
    parts: Conversation, tools: Sequence[ToolDefinition], prompt_tokens_max: int | None
) -> tuple[tuple[ChatMessage, ...], int | None]:
    """The messages of a prompt, cut to `prompt_tokens_max` (None: not cut), and their tokens as far as they were counted.

    Dropped are messages in the middle of the thread: the newest always stay, and the first one if it takes no more than a quarter. When
    even the least prompt is too large, it is returned with its count, and the caller decides.
    """
    head = [ChatMessage("system", parts.instructions)] if parts.instructions else []
    if prompt_tokens_max is None:
        return (*head, *parts.history, *parts.turns), None
    history = list(parts.history)
    kept_last = history[-1:]
    used = count_prompt_tokens([*head, *kept_last, *parts.turns], tools)
    first: list[ChatMessage] = []
    if len(history) > 1:
        first_tokens = count_prompt_tokens(history[:1], ())
        if first_tokens <= prompt_tokens_max // 4 and used + first_tokens <= prompt_tokens_max:
            first, used = history[:1], used + first_tokens
    begin = len(history) - len(kept_last)
    while begin > len(first):
        tokens = count_prompt_tokens(history[begin - 1 : begin], ())
        if used + tokens > prompt_tokens_max:
            break
        begin, used = begin - 1, used + tokens
    return (*head, *first, *history[begin:], *parts.turns), used


def function_definitions(run: Run) -> list[ToolDefinition]:
    """The client's functions as they are offered to the model."""
    return [
        ToolDefinition(
            name=tool.function.name,
            parameters=tool.function.parameters or {"type": "object", "properties": {}},
            description=tool.function.description or None,
            strict=bool(tool.function.strict),
        )
        for tool in run.tools
        if isinstance(tool, FunctionTool)
    ]


def tool_choice(run: Run, offered: Sequence[ToolDefinition], turn: int) -> Choice:
    """The choice for a turn: what the run asks for in its first turn, `auto` later, or a run could never end."""
    choice = run.tool_choice
    if choice == "none" or not offered:
        return "none"
    if turn > 1 or choice == "auto":
        return "auto"
    if choice == "required":
        return "required"
    name = choice.function.name if isinstance(choice, FunctionChoice) else _hosted_type(choice)
    return NamedTool(name) if any(tool.name == name for tool in offered) else "auto"


def _hosted_type(choice: object) -> str:
    return str(msgspec.to_builtins(choice)["type"])


def response_format(run: Run) -> dict[str, object] | None:
    """The format of an answer as providers take it; None for text."""
    if isinstance(run.response_format, JsonObjectFormat | JsonSchemaFormat):
        return msgspec.to_builtins(run.response_format)
    return None
