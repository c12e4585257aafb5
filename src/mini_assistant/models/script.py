"""The language of the scripted endpoint: rules that match a request, and the steps of the answer.

A script is JSON: `{"rules": [RULE, ...], "abilities": {...}}`. The first rule whose conditions all hold answers; without
one the default reply does (see `default_steps`). What the endpoint takes is described in `scripted_abilities.py`. A rule:

    {"model": "m",            only requests for this model
     "contains": "weather",   only when the last user message contains this text; results of tools are none
     "after_tool": true,      only when the last message is a tool's result (false: only when it is not)
     "times": 2,              only for the first 2 requests that match otherwise
     "streams": false,        answer one JSON completion even when a stream was asked for
     "steps": [STEP, ...]}

Steps are told apart by `do` and are played in order:

    {"do": "text", "text": "Hello there"}                      word by word; or a list of pieces: ["Hel", "lo"]
    {"do": "text", "text": ["tok "], "repeat": 100, "delay_seconds": 0.02}
    {"do": "tool_calls", "calls": [{"name": "f", "arguments": "{}"}], "pieces": 2}
    {"do": "refusal", "text": "No."}         {"do": "reasoning", "text": "Hm."}
    {"do": "wait", "seconds": 0.5}           pause, for instance before the first token
    {"do": "frames", "frames": [{...}]}      chunks exactly as given, one event each
    {"do": "raw", "text": "<html>"}          bytes exactly as given
    {"do": "error_frame", "message": "Overloaded", "code": "server_error"}
    {"do": "cut"}                            close the connection in the middle
    {"do": "stall"}                          send nothing more until the client goes away
    {"do": "finish", "reason": "length", "usage": "none", "done": false}
    {"do": "respond", "status": 429, "headers": {"Retry-After": "1"}, "body": {"error": {"message": "Slow down"}}}

A `finish` is added where no step ends the answer. `respond` must be the only step.

Where the model calls no tools in the way of the API and is told how to write its next step instead, `text` and `tool_calls` are written
so (`scripted_emulation.py`); a text with `"raw": true` stays as it is.
"""

import re
from typing import Any, Literal, cast

import msgspec

from mini_assistant.models.scripted_abilities import Abilities

_RESULTS = "# Tool results"
_RESULT_HEAD = re.compile(r"^[\w.-]+ \([\w.-]+\):(?:\n| |$)", re.MULTILINE)


class Text(msgspec.Struct, tag_field="do", tag="text"):
    """Answer text. delay_seconds: pause before each piece. raw: sent as it is, whatever form the answer should have."""

    text: str | list[str]
    repeat: int = 1
    delay_seconds: float = 0.0
    raw: bool = False


class ScriptedCall(msgspec.Struct):
    """One tool call of the answer. `arguments` is JSON text; an id is made when None."""

    name: str
    arguments: str = "{}"
    id: str | None = None


class ToolCalls(msgspec.Struct, tag_field="do", tag="tool_calls"):
    """Parallel tool calls. pieces: into how many chunks each call's arguments are cut."""

    calls: list[ScriptedCall]
    pieces: int = 2
    delay_seconds: float = 0.0


class Refusal(msgspec.Struct, tag_field="do", tag="refusal"):
    """A refusal, word by word."""

    text: str


class Reasoning(msgspec.Struct, tag_field="do", tag="reasoning"):
    """What the model thinks before it answers, word by word in `reasoning_content`."""

    text: str


class Wait(msgspec.Struct, tag_field="do", tag="wait"):
    """A pause."""

    seconds: float


class Frames(msgspec.Struct, tag_field="do", tag="frames"):
    """Chunks as given, for shapes that only some providers send."""

    frames: list[dict[str, Any]]


class Raw(msgspec.Struct, tag_field="do", tag="raw"):
    """Bytes as given, without framing."""

    text: str


class ErrorFrame(msgspec.Struct, tag_field="do", tag="error_frame"):
    """An error in the middle of the stream; it ends the answer."""

    message: str
    code: str | int | None = None


class Cut(msgspec.Struct, tag_field="do", tag="cut"):
    """The connection breaks."""


class Stall(msgspec.Struct, tag_field="do", tag="stall"):
    """Nothing more is sent; the answer is open until the client leaves."""


class Finish(msgspec.Struct, tag_field="do", tag="finish"):
    """The end of the answer. reason: None sends no `finish_reason`; done: whether `[DONE]` follows."""

    reason: str | None = "stop"
    usage: Literal["as_asked", "with_finish", "none"] = "as_asked"
    done: bool = True


class Respond(msgspec.Struct, tag_field="do", tag="respond"):
    """A whole HTTP answer instead of a stream."""

    status: int = 200
    body: str | dict[str, Any] = ""
    headers: dict[str, str] = {}
    content_type: str = "application/json"


Step = Text | ToolCalls | Refusal | Reasoning | Wait | Frames | Raw | ErrorFrame | Cut | Stall | Finish | Respond


class Rule(msgspec.Struct, eq=False):
    """Which requests are answered how. A condition that is None always holds. Two rules are never the same rule."""

    steps: list[Step]
    model: str | None = None
    contains: str | None = None
    after_tool: bool | None = None
    times: int | None = None
    streams: bool = True

    def matches(self, request: dict[str, Any], earlier: int) -> bool:
        """Whether the rule answers this request. earlier: requests that it has answered before."""
        return (
            (self.model is None or self.model == request.get("model"))
            and (self.contains is None or self.contains in last_user_text(request))
            and (self.after_tool is None or self.after_tool == is_after_tool(request))
            and (self.times is None or earlier < self.times)
        )


class Script(msgspec.Struct, forbid_unknown_fields=True):
    """Rules in the order in which they are tried, and what the model can do."""

    rules: list[Rule] = []
    abilities: Abilities = Abilities()


def words(text: str) -> list[str]:
    """The text in pieces of a word with the white space after it."""
    return re.findall(r"\S+\s*|^\s+", text)


def message_text(message: dict[str, Any]) -> str:
    """The text of a message of a request; images are left out."""
    content: Any = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def last_user_text(request: dict[str, Any]) -> str:
    """The text of the newest message that the user wrote; empty when there is none."""
    users = [message for message in request["messages"] if message.get("role") == "user" and not _holds_results(message)]
    return message_text(users[-1]) if users else ""


def is_after_tool(request: dict[str, Any]) -> bool:
    """Whether the request brings back the result of a tool, as such or in the words of a user message."""
    last: dict[str, Any] = request["messages"][-1] if request["messages"] else {}
    return last.get("role") == "tool" or _holds_results(last)


def _holds_results(message: dict[str, Any]) -> bool:
    return message.get("role") == "user" and message_text(message).startswith(_RESULTS)


def _last_result(message: dict[str, Any]) -> str:
    """The output of the last call in a message."""
    text = message_text(message)
    if message.get("role") == "tool":
        return text
    heads = list(_RESULT_HEAD.finditer(text))
    return text[heads[-1].end() :].rstrip("\n") if heads else text.removeprefix(_RESULTS).strip()


def default_steps(request: dict[str, Any]) -> list[Step]:
    """The answer without a rule.

    After a tool's result: `The tool returned: <output>`. When tools are offered and the last user message says
    `call NAME {json}` (any number of times), or tool_choice demands a call: those calls. Else `You said: <text>`.
    """
    if is_after_tool(request):
        return [Text(f"The tool returned: {_last_result(request['messages'][-1])}")]
    calls = _default_calls(request)
    return [ToolCalls(calls)] if calls else [Text(f"You said: {last_user_text(request)}")]


def _default_calls(request: dict[str, Any]) -> list[ScriptedCall]:
    tools: list[dict[str, Any]] = request.get("tools") or []
    offered: dict[str, dict[str, Any]] = {tool["function"]["name"]: tool["function"] for tool in tools}
    choice: Any = request.get("tool_choice", "auto")
    if not offered or choice == "none":
        return []
    text = last_user_text(request)
    calls = [ScriptedCall(name, arguments) for name, arguments in _calls_in(text) if name in offered]
    if isinstance(choice, dict):
        name = cast("str", choice["function"]["name"])
        calls = [call for call in calls if call.name == name] or [ScriptedCall(name, _made_up_arguments(offered[name], text))]
    elif choice == "required" and not calls:
        name = next(iter(offered))
        calls = [ScriptedCall(name, _made_up_arguments(offered[name], text))]
    return calls if request.get("parallel_tool_calls", True) else calls[:1]


def _calls_in(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for match in re.finditer(r"\bcall (\w+)[ \t]*", text):
        found.append((match[1], _leading_object(text[match.end() :])))
    return found


def _leading_object(text: str) -> str:
    """The JSON object with which the text begins, as written; `{}` when it does not begin with one."""
    if not text.startswith("{"):
        return "{}"
    for end in (match.end() for match in re.finditer("}", text)):
        try:
            msgspec.json.decode(text[:end])
        except msgspec.DecodeError:
            continue
        return text[:end]
    return "{}"


def _made_up_arguments(function: dict[str, Any], text: str) -> str:
    """Arguments for a forced call: every required string is the user's text."""
    parameters: dict[str, Any] = function.get("parameters") or {}
    properties: dict[str, Any] = parameters.get("properties") or {}
    required: list[str] = parameters.get("required") or []
    arguments = {name: text for name in required if properties.get(name, {}).get("type") == "string"}
    return msgspec.json.encode(arguments).decode()
