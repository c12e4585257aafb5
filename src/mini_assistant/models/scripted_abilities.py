"""What the model behind a scripted endpoint takes, and how its server refuses the rest: in the words of servers that people use.

Part of a script: `{"abilities": {"tools": "refuse", "server": "ollama"}, "rules": [...]}`. Each ability is one of

    true        the model does as it is asked
    "ignore"    the server takes the field and does as if it had not been sent (false means the same)
    "refuse"    the server answers with the error that `server` gives for it
"""

from typing import Any, Literal, NamedTuple, cast

import msgspec

Heeding = bool | Literal["ignore", "refuse"]
Server = Literal["openai", "ollama", "vllm", "llama_cpp", "lm_studio", "openrouter", "deepseek"]


class ErrorAnswer(NamedTuple):
    """What a server answers to a request that it refuses. body: becomes JSON."""

    status: int
    body: dict[str, Any]


class Abilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The abilities of the model; the defaults are those of a hosted model that can do all.

    tools: without them the model reads no calls and results in the conversation either.
    tool_choice: of what demands a call; `refuse_object`: only an object that names a tool is refused.
    max_tokens_parameter: the only name under which the limit of an answer is taken; None: both.
    temperature: together with `top_p`.
    server: whose words a refusal is written in; those of the hosted API where that server has none.
    """

    tools: Heeding = True
    tool_choice: Heeding | Literal["refuse_object"] = True
    parallel_tool_calls: Heeding = True
    json_schema: Heeding = True
    json_object: Heeding = True
    system_role: Heeding = True
    developer_role: Heeding = True
    images: Heeding = True
    temperature: Heeding = True
    reasoning_effort: Heeding = True
    stream_options: Heeding = True
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] | None = None
    server: Server = "openai"

    def refusal_or_none(self, request: dict[str, Any]) -> ErrorAnswer | None:
        """The error for the first thing in the request that is refused."""
        for ability in _used(request):
            heeding: object = getattr(self, ability)
            if heeding == "refuse" or (heeding == "refuse_object" and isinstance(request["tool_choice"], dict)):
                return _refusal(self.server, ability, request)
        if self.max_tokens_parameter == "max_tokens" and "max_completion_tokens" in request:
            return _refusal(self.server, "max_completion_tokens", request)
        if self.max_tokens_parameter == "max_completion_tokens" and "max_tokens" in request:
            return _refusal(self.server, "max_tokens", request)
        return None

    def heeded(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request without what is ignored."""
        seen = dict(request)
        for ability in _used(request):
            if getattr(self, ability) in (False, "ignore"):
                for field in _FIELDS[ability]:
                    seen.pop(field, None)
                seen["messages"] = [_as_read(message, ability) for message in seen["messages"] if not _is_unread(message, ability)]
        return seen


_FIELDS: dict[str, tuple[str, ...]] = {
    "tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "tool_choice": ("tool_choice",),
    "parallel_tool_calls": ("parallel_tool_calls",),
    "json_schema": ("response_format",),
    "json_object": ("response_format",),
    "system_role": (),
    "developer_role": (),
    "images": (),
    "temperature": ("temperature", "top_p"),
    "reasoning_effort": ("reasoning_effort",),
    "stream_options": ("stream_options",),
}


def _used(request: dict[str, Any]) -> list[str]:
    """The abilities that a request makes use of."""
    messages: list[dict[str, Any]] = request["messages"]
    roles = {message.get("role") for message in messages}
    used = [name for name in ("parallel_tool_calls", "reasoning_effort", "stream_options") if name in request]
    response_format: dict[str, Any] = request.get("response_format") or {}
    format_type: Any = response_format.get("type")
    is_used = {
        "system_role": "system" in roles,
        "developer_role": "developer" in roles,
        "tools": bool(request.get("tools")) or "tool" in roles or any(message.get("tool_calls") for message in messages),
        "tool_choice": request.get("tool_choice", "auto") not in ("auto", "none"),
        "json_schema": format_type == "json_schema",
        "json_object": format_type == "json_object",
        "images": any(_has_image(message) for message in messages),
        "temperature": "temperature" in request or "top_p" in request,
    }
    return [*(name for name, is_so in is_used.items() if is_so), *used]


def _has_image(message: dict[str, Any]) -> bool:
    content: Any = message.get("content")
    return isinstance(content, list) and any(part.get("type") == "image_url" for part in cast("list[dict[str, Any]]", content))


def _is_unread(message: dict[str, Any], ability: str) -> bool:
    role = message.get("role")
    return (ability, role) in {("tools", "tool"), ("system_role", "system"), ("developer_role", "developer")}


def _as_read(message: dict[str, Any], ability: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"} if ability == "tools" else message


# ---- the words of servers ------------------------------------------------------------------------------------------------------------

_UNSUPPORTED = "Unsupported parameter: '{name}' is not supported with this model."
_OPENAI: dict[str, str] = {
    "tool_choice": "Unsupported value: 'tool_choice' does not support '{choice}' with this model.",
    "json_schema": "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
    "json_object": "Invalid parameter: 'response_format' of type 'json_object' is not supported with this model.",
    "system_role": "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    "developer_role": "Unsupported value: 'messages[0].role' does not support 'developer' with this model.",
    "images": "Invalid content type. image_url is only supported by certain models.",
    "temperature": "Unsupported value: 'temperature' does not support {temperature} with this model. Only the default (1) value is "
    "supported.",
    "stream_options": "Unrecognized request argument supplied: stream_options",
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "max_completion_tokens": "Unrecognized request argument supplied: max_completion_tokens",
}
_OTHERS: dict[tuple[str, str], str] = {
    ("ollama", "tools"): "registry.ollama.ai/library/{model} does not support tools",
    ("vllm", "tools"): '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ("vllm", "tool_choice"): 'tool_choice="required" requires --tool-call-parser to be set',
    ("vllm", "system_role"): "System role not supported",
    ("vllm", "images"): "{model} is not a multimodal model",
    ("llama_cpp", "tools"): "tools param requires --jinja flag",
    ("llama_cpp", "tool_choice"): "tool_choice param requires --jinja flag",
    ("llama_cpp", "json_schema"): 'response_format type must be one of "text" or "json_object", but got: json_schema',
    ("llama_cpp", "images"): "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    ("lm_studio", "tool_choice"): "Invalid tool_choice type: 'object'. Supported string values: none, auto, required",
    ("lm_studio", "json_object"): "'response_format.type' must be 'json_schema' or 'text'",
    (
        "openrouter",
        "tools",
    ): "No endpoints found that support tool use. To learn more about provider routing, visit: https://openrouter.ai/docs",
    ("openrouter", "images"): "No endpoints found that support image input",
    ("deepseek", "tools"): "{model} does not support Function Calling",
    ("deepseek", "tool_choice"): "{model} does not support this tool_choice",
    ("deepseek", "json_schema"): "This response_format type is unavailable now",
    ("deepseek", "json_object"): "This response_format type is unavailable now",
    (
        "deepseek",
        "developer_role",
    ): "Failed to deserialize the JSON body into the target type: messages[0].role: unknown variant `developer`, "
    "expected one of `system`, `user`, `assistant`, `tool` at line 1 column 60",
    ("deepseek", "images"): "Failed to deserialize the JSON body into the target type: messages[0]: unknown variant `image_url`, "
    "expected `text` at line 1 column 91",
}
_TOOL_RESULT = "Conversation roles must alternate user/assistant/user/assistant/..."


def _refusal(server: Server, ability: str, request: dict[str, Any]) -> ErrorAnswer:
    own = _OTHERS.get((server, ability))
    words = own or _OPENAI.get(ability, _UNSUPPORTED)
    name = "top_p" if ability == "temperature" and "temperature" not in request else ability
    if name == "top_p":
        words = _UNSUPPORTED
    if ability == "tools" and not request.get("tools"):
        words = _TOOL_RESULT  # what a chat template raises that knows no results of tools
    choice = request.get("tool_choice")
    message = words.format(
        name=name,
        model=request.get("model", ""),
        choice=choice if isinstance(choice, str) else "object",
        temperature=request.get("temperature"),
    )
    return _in_the_shape_of(server, message, name)


def _in_the_shape_of(server: Server, message: str, name: str) -> ErrorAnswer:
    match server:
        case "vllm":
            return ErrorAnswer(400, {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400})
        case "llama_cpp":
            return ErrorAnswer(500, {"error": {"code": 500, "message": message, "type": "server_error"}})
        case "lm_studio":
            return ErrorAnswer(400, {"error": message})
        case "openrouter":
            return ErrorAnswer(404, {"error": {"message": message, "code": 404}})
        case "ollama":
            return ErrorAnswer(400, {"error": {"message": message, "type": "api_error", "param": None, "code": None}})
        case "deepseek":
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_request_error"}
            return ErrorAnswer(400, {"error": error})
        case "openai":
            code = "unsupported_value" if message.startswith("Unsupported value") else "unsupported_parameter"
            return ErrorAnswer(400, {"error": {"message": message, "type": "invalid_request_error", "param": name, "code": code}})
