"""Turns a `ChatRequest` into the body of POST /chat/completions, within what the model can do."""

from typing import Any

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import (
    Capabilities,
    ChatMessage,
    ChatRequest,
    ImagePart,
    NamedTool,
    StoredImagePart,
    TextPart,
    ToolDefinition,
)


def encode_chat_request(request: ChatRequest, capabilities: Capabilities) -> bytes:
    """The body as JSON. What the model cannot do is left out, except for images.

    Raises ModelError (`invalid_prompt`) when there is an image and the model takes none: it would be answered unseen. Also when a schema
    is nested too deeply to be written.
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message, request.model, capabilities) for message in request.messages],
        "stream": True,
    }
    if capabilities.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if request.tools and capabilities.tools:
        body.update(_tool_fields(request, capabilities))
    if capabilities.temperature:
        _put(body, "temperature", request.temperature)
        _put(body, "top_p", request.top_p)
    if capabilities.reasoning_effort:
        _put(body, "reasoning_effort", request.reasoning_effort)
    _put(body, "response_format", _response_format_or_none(request.response_format, capabilities))
    _put(body, capabilities.max_tokens_parameter, _completion_tokens_or_none(request, capabilities))
    try:
        return msgspec.json.encode(body)
    except RecursionError:
        raise ModelError("The schemas of the tools or of the answer lie too deeply in each other.", code="invalid_prompt") from None


def _put(body: dict[str, Any], name: str, value: Any) -> None:
    if value is not None:
        body[name] = value


def _message(message: ChatMessage, model: str, capabilities: Capabilities) -> dict[str, Any]:
    content = message.content
    encoded: dict[str, Any] = {
        "role": capabilities.system_role if message.role == "system" else message.role,
        "content": content if isinstance(content, str) else _parts(content, model, capabilities),
    }
    if message.tool_calls:
        encoded["content"] = encoded["content"] or None
        encoded["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        encoded["tool_call_id"] = message.tool_call_id
    return encoded


def _parts(parts: tuple[TextPart | ImagePart | StoredImagePart, ...], model: str, capabilities: Capabilities) -> str | list[dict[str, Any]]:
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text  # plain text is understood by every server, a list of parts only by some
    encoded: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, TextPart):
            encoded.append({"type": "text", "text": part.text})
        elif not capabilities.images:
            raise ModelError(f"The model '{model}' does not take images.", code="invalid_prompt")
        else:
            assert isinstance(part, ImagePart)  # the run engine puts images in the place of files
            encoded.append({"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}})
    return encoded


def _tool_fields(request: ChatRequest, capabilities: Capabilities) -> dict[str, Any]:
    choice, tools = request.tool_choice, request.tools
    if isinstance(choice, NamedTool):
        # Many servers refuse or overlook the object that names a tool; every one of them knows that it must call the only one.
        choice, tools = "required", tuple(tool for tool in tools if tool.name == choice.name)
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in tools]}
    if choice != "auto":
        fields["tool_choice"] = choice
    if capabilities.parallel_tool_calls:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return fields


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.parameters}
    _put(function, "description", tool.description)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _response_format_or_none(wanted: dict[str, Any] | None, capabilities: Capabilities) -> dict[str, Any] | None:
    kind = None if wanted is None else wanted.get("type")
    if kind == "json_schema" and capabilities.json_schema:
        return wanted
    if kind in ("json_schema", "json_object") and capabilities.json_object:
        return {"type": "json_object"}
    return None


def _completion_tokens_or_none(request: ChatRequest, capabilities: Capabilities) -> int | None:
    limits = [limit for limit in (request.completion_tokens_max, capabilities.completion_tokens_max) if limit is not None]
    return min(limits) if request.completion_tokens_max is not None else None
