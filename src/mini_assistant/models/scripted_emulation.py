"""How a scripted model answers that calls no tools in the way of the API: it does what the request tells it to.

Told it is by the schema of a `next_step` in `response_format`, or by the section `# Tools` of the system message. The steps of a rule
are written in that form, so a rule written once is played on every endpoint; a `raw` text is sent as it is.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec

from mini_assistant.models.script import Finish, ScriptedCall, Step, Text, ToolCalls, message_text, words

_HEADING = re.compile(r"^# Tools[ \t]*$", re.MULTILINE)
_DEMAND = re.compile(r"^You must call (?:a tool|the tool (?P<name>\S+)) now\.[ \t]*$", re.MULTILINE)


class Told(msgspec.Struct, frozen=True):
    """What a request says about tools without the API's own fields.

    form: whether the whole answer is JSON. fields: the same said in the API's own way. is_reply_text: whether a reply is a string; None
    when nothing says so.
    """

    form: Literal["json", "text"]
    fields: dict[str, Any]
    is_reply_text: bool | None = None

    def written(self, steps: Sequence[Step]) -> list[Step]:
        """The steps in the form that is asked for. A next step is a reply or calls: where there are calls, texts are left out of JSON."""
        if self.form == "text":
            return _written_as_text(steps)
        calls = [call for step in steps if isinstance(step, ToolCalls) for call in step.calls]
        return _written_calls(steps, calls) if calls else self._written_reply(steps)

    def _written_reply(self, steps: Sequence[Step]) -> list[Step]:
        places = [place for place, step in enumerate(steps) if isinstance(step, Text) and not step.raw]
        if not places:
            return list(steps)
        texts = [step for step in steps if isinstance(step, Text) and not step.raw]
        is_text = not _is_object("".join("".join(_pieces(text)) for text in texts)) or self.is_reply_text is True
        written: list[Step] = []
        for place, step in enumerate(steps):
            if not isinstance(step, Text) or step.raw:
                written.append(step)
                continue
            pieces = [_inside_string(piece) if is_text else piece for piece in _pieces(step)] or [""]
            if place == places[0]:
                pieces[0] = ('{"next_step": {"reply": "' if is_text else '{"next_step": {"reply": ') + pieces[0]
            if place == places[-1] and _is_whole(steps[place + 1 :]):
                pieces[-1] += '"}}' if is_text else "}}"
            written.append(Text(pieces, delay_seconds=step.delay_seconds))
        return written


def told_or_none(request: dict[str, Any]) -> Told | None:
    """What the request tells a model without tools; None when it tells nothing of them, or speaks in the API's own way."""
    if request.get("tools"):
        return None
    return _told_by_schema_or_none(request) or _told_in_words_or_none(request)


def _told_by_schema_or_none(request: dict[str, Any]) -> Told | None:
    response_format: dict[str, Any] = request.get("response_format") or {}
    wanted: dict[str, Any] = response_format.get("json_schema") or {}
    schema: dict[str, Any] = wanted.get("schema") or {}
    if response_format.get("type") != "json_schema" or "next_step" not in _properties(schema):
        return None
    branches = [_properties(branch) for branch in _branches(_properties(schema)["next_step"], schema)]
    reply = next((branch["reply"] for branch in branches if "reply" in branch), None)
    calls = next((branch["tool_calls"] for branch in branches if "tool_calls" in branch), None)
    if calls is None:
        return None
    tools: list[dict[str, Any]] = []
    for call in _branches(calls["items"], schema):
        name, arguments = _properties(call)["name"], _properties(call)["arguments"]
        tools.append({"name": name["enum"][0], "parameters": _resolved(arguments, schema)})
    is_reply_text = None if reply is None else _resolved(reply, schema).get("type") == "string"
    return Told("json", _fields(tools, "required" if reply is None else "auto", is_single=calls.get("maxItems") == 1), is_reply_text)


def _told_in_words_or_none(request: dict[str, Any]) -> Told | None:
    first = message_text(request["messages"][0]) if request["messages"] else ""
    headings = list(_HEADING.finditer(first))
    if not headings:
        return None
    section = first[headings[-1].end() :]
    tools = [tool for line in section.splitlines() if line.startswith("{") for tool in _tools_of_line(line)]
    demand = _DEMAND.search(section)
    name = demand["name"] if demand is not None else None
    choice: Any = {"type": "function", "function": {"name": name}} if name else "auto" if demand is None else "required"
    return Told("json" if "next_step" in section else "text", _fields(tools, choice, is_single=False))


def _fields(tools: list[dict[str, Any]], choice: Any, *, is_single: bool) -> dict[str, Any]:
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    return {"tools": wrapped, "tool_choice": choice, "parallel_tool_calls": not is_single}


def _tools_of_line(line: str) -> list[dict[str, Any]]:
    try:
        tool: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return []
    return [tool] if "name" in tool and "parameters" in tool else []


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    return schema.get("properties") or {}


def _branches(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    resolved = _resolved(schema, root)
    return [_resolved(branch, root) for branch in cast("list[dict[str, Any]]", resolved.get("anyOf") or [resolved])]


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference: Any = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    definitions: dict[str, Any] = root.get("$defs") or {}
    return definitions.get(reference.removeprefix("#/$defs/"), {})


# ---- writing -------------------------------------------------------------------------------------------------------------------------


def _written_calls(steps: Sequence[Step], calls: list[ScriptedCall]) -> list[Step]:
    written: list[Step] = []
    is_first = True
    for step in steps:
        if isinstance(step, ToolCalls) and is_first:
            text = ", ".join(_call_text(call) for call in calls)
            pieces = _cut('{"next_step": {"tool_calls": [' + text + "]}}", step.pieces * len(calls))
            written.append(Text(pieces, delay_seconds=step.delay_seconds))
            is_first = False
        elif not isinstance(step, ToolCalls) and (not isinstance(step, Text) or step.raw):
            written.append(step)
    return [_ended(step) for step in written]


def _written_as_text(steps: Sequence[Step]) -> list[Step]:
    written: list[Step] = []
    for step in steps:
        if isinstance(step, ToolCalls):
            lines = "".join(f"<tool_call>{_call_text(call)}</tool_call>\n" for call in step.calls)
            break_before = "\n" if written and isinstance(written[-1], Text) else ""
            written.append(Text(_cut(break_before + lines, step.pieces * len(step.calls)), delay_seconds=step.delay_seconds))
        else:
            written.append(_ended(step))
    return written


def _ended(step: Step) -> Step:
    """Without calls of the API's own an answer ends with `stop`."""
    return msgspec.structs.replace(step, reason="stop") if isinstance(step, Finish) and step.reason == "tool_calls" else step


def _call_text(call: ScriptedCall) -> str:
    """A call as the model writes it; its arguments stay as they are in the script, JSON or not."""
    return f'{{"name": {msgspec.json.encode(call.name).decode()}, "arguments": {call.arguments or "{}"}}}'


def _cut(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _pieces(step: Text) -> list[str]:
    return (words(step.text) if isinstance(step.text, str) else step.text) * step.repeat


def _inside_string(text: str) -> str:
    return msgspec.json.encode(text).decode()[1:-1]


def _is_whole(rest: Sequence[Step]) -> bool:
    """Whether an answer that ends with these steps is written to its end."""
    return all(isinstance(step, Finish) and step.reason in ("stop", "tool_calls", None) for step in rest)


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False
