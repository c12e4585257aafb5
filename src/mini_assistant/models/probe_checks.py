"""What a probe asks a model, and what the answers mean."""

import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mini_assistant.models.base import TextDelta
from mini_assistant.models.probe_endpoint import Answer
from mini_assistant.models.probe_report import Outcome
from mini_assistant.models.think_tags import ThinkTags

_LIMIT_TOKENS = 16
# A token of English is some 4 characters; an answer of this length has not heard of the limit.
_LIMITED_CHARACTERS_MAX = _LIMIT_TOKENS * 12

Verdict = tuple[Outcome, str]


@dataclass(frozen=True, slots=True)
class Check:
    """One test. fields: of the request, beside those that every request has. judge: what an answer means."""

    name: str
    messages: list[dict[str, Any]]
    judge: Callable[[Answer], Verdict]
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _tool(name: str, what: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Get {what} of a city.", "parameters": parameters}}


_WEATHER = _tool("get_weather", "the weather")
_TIME = _tool("get_time", "the time")
# What the prompt asks for is outside of it, so that it is kept only by a server that enforces it.
_COLOUR_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["purple", "brown"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def _accepted(_answer: Answer) -> Verdict:
    return "yes", ""


def judge_limit(answer: Answer) -> Verdict:
    """Whether the answer ended at the limit."""
    if answer.finish == "length":
        return "yes", ""
    if len(answer.text) > _LIMITED_CHARACTERS_MAX:
        return "ignored", f"the answer was longer than {_LIMIT_TOKENS} tokens"
    return "unknown", "accepted, but the answer was too short to tell"


def _judge_usage(answer: Answer) -> Verdict:
    return ("yes", "") if answer.usage is not None else ("ignored", "accepted, but no usage came")


def _judge_word(word: str) -> Callable[[Answer], Verdict]:
    def judge(answer: Answer) -> Verdict:
        return ("yes", "") if word in _said(answer).lower() else ("ignored", "accepted, but the instruction was not followed")

    return judge


def _judge_call(name: str) -> Callable[[Answer], Verdict]:
    def judge(answer: Answer) -> Verdict:
        if not answer.calls:
            return "ignored", "it answered in words"
        if any(called != name for called, _ in answer.calls):
            return "ignored", "it called another tool"
        return ("yes", "") if all(_is_object(arguments) for _, arguments in answer.calls) else ("ignored", "its arguments are no JSON")

    return judge


def _judge_no_call(answer: Answer) -> Verdict:
    return ("ignored", "it called the tool all the same") if answer.calls else ("yes", "")


def _judge_parallel(answer: Answer) -> Verdict:
    count = len(answer.calls)
    return ("yes", "") if count > 1 else ("ignored", "one call at a time" if count else "it answered in words")


def _judge_schema(answer: Answer) -> Verdict:
    try:
        colour = msgspec.json.decode(_said(answer), type=dict[str, str])
    except (msgspec.DecodeError, RecursionError):
        return "ignored", "the answer is not of the schema"
    return ("yes", "") if colour in ({"colour": "purple"}, {"colour": "brown"}) else ("ignored", "the answer is not of the schema")


def _judge_json(answer: Answer) -> Verdict:
    return ("yes", "") if _is_object(_said(answer)) else ("ignored", "the answer is not a JSON object alone")


def _judge_image(answer: Answer) -> Verdict:
    return ("yes", "") if "orange" in _said(answer).lower() else ("ignored", "accepted, not seen")


def _said(answer: Answer) -> str:
    """The answer without reasoning that was written into it."""
    tags = ThinkTags(True)
    deltas = [*tags.feed(answer.text), *tags.end()]
    said = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return said.rpartition("</think>")[2]


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _png(red: int, green: int, blue: int, *, size: int = 64) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes((red, green, blue)) * size) * size
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


_SHOWN_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + b64encode(_png(255, 140, 0)).decode()}}
HELLO = _user("Answer with the single word: hello")
_COUNT = _user("Write the numbers from one to one hundred as words, separated by spaces, and nothing before or after them.")
_ROLES = {"system": ("PELICAN", "What is your name?"), "developer": ("HERON", "Who are you?"), "user": ("WALRUS", "How are you called?")}


def role_check(role: str) -> Check:
    """An instruction in a message of this role: system, developer or user."""
    word, question = _ROLES[role]
    instruction = {"role": role, "content": f"Whatever the user writes, answer with the single word {word}."}
    return Check(f"{role}_role", [instruction, *_user(question)], _judge_word(word.lower()))


LIMIT_CHECKS = tuple(Check(name, _COUNT, judge_limit, {name: _LIMIT_TOKENS}) for name in ("max_completion_tokens", "max_tokens"))
TEMPERATURE_CHECK = Check("temperature", _user("Answer with the single word: ready"), _accepted, {"temperature": 0})
USAGE_CHECK = Check("stream_usage", _user("Answer with the single word: fine"), _judge_usage, {"stream_options": {"include_usage": True}})
EFFORT_CHECK = Check("reasoning_effort", _user("Answer with the single word: done"), _accepted, {"reasoning_effort": "low"})
TOOLS_CHECK = Check(
    "tools",
    _user("What is the weather in Paris? Find out with the tool get_weather."),
    _judge_call("get_weather"),
    {"tools": [_WEATHER]},
)
# A server may well enforce a call that it never makes by itself, so these are asked in any case.
CHOICE_CHECKS = (
    Check("tool_choice_required", _user("Tell me a joke."), _judge_call("get_weather"), {"tools": [_WEATHER], "tool_choice": "required"}),
    Check(
        "tool_choice_named",
        _user("What is the weather in Rome?"),
        _judge_call("get_time"),
        {"tools": [_WEATHER, _TIME], "tool_choice": {"type": "function", "function": {"name": "get_time"}}},
    ),
)
CALL_CHECKS = (
    Check("tool_choice_none", _user("What is the weather in Oslo?"), _judge_no_call, {"tools": [_WEATHER], "tool_choice": "none"}),
    Check(
        "parallel_tool_calls",
        _user("What is the weather in Lima and in Cairo? Use the tool get_weather once for each of the two cities, both at the same time."),
        _judge_parallel,
        {"tools": [_WEATHER], "parallel_tool_calls": True},
    ),
)
FORM_CHECKS = (
    Check(
        "json_schema",
        _user("What colour is a cloudless sky at noon?"),
        _judge_schema,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "sky", "schema": _COLOUR_SCHEMA, "strict": True}}},
    ),
    Check(
        "json_object",
        _user('Which three colours has the flag of France? Answer as a JSON object with the key "colours".'),
        _judge_json,
        {"response_format": {"type": "json_object"}},
    ),
    Check(
        "images",
        [{"role": "user", "content": [{"type": "text", "text": "Which colour is this picture? Answer with one word."}, _SHOWN_IMAGE]}],
        _judge_image,
    ),
)
