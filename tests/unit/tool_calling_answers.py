"""What the tests of emulated tool calls share: requests with tools, and answers read in pieces."""

import itertools
from typing import Any

import msgspec

from mini_assistant.models.base import ChatMessage, ChatRequest, Emulation, TextDelta, ToolCallDelta, ToolDefinition
from mini_assistant.models.tool_calling.emulation import AnswerReader, UnreadableAnswer

WEATHER = ToolDefinition("weather", {"type": "object", "properties": {"city": {"type": "string"}}}, "The weather of a city.")
CLOCK = ToolDefinition("clock", {"type": "object", "properties": {}})


def request_with(**changes: Any) -> ChatRequest:
    request = ChatRequest("m", (ChatMessage("user", "Hello"),), tools=(WEATHER, CLOCK))
    return msgspec.structs.replace(request, **changes)


def split(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in itertools.pairwise(borders)]


def told_of(pieces: list[str], form: Emulation, request: ChatRequest) -> list[str | tuple[str, str]]:
    """What is told of an answer: texts that follow each other as one, a call as name and arguments. Raises UnreadableAnswer."""
    reader = AnswerReader(request, form)
    told: list[str | tuple[str, str]] = []
    texts: list[str] = []
    calls = 0
    has_told = False
    for delta in (delta for deltas in _reads(reader, pieces) for delta in deltas):
        has_told = True
        if isinstance(delta, TextDelta):
            assert delta.text
            texts.append(delta.text)
        else:
            assert isinstance(delta, ToolCallDelta)
            assert delta.name is not None
            assert delta.index == calls
            assert isinstance(msgspec.json.decode(delta.arguments), dict)
            calls += 1
            told += [*joined(texts), (delta.name, delta.arguments)]
            texts.clear()
    assert reader.has_told == has_told
    return [*told, *joined(texts)]


def joined(texts: list[str]) -> list[str]:
    return ["".join(texts)] if texts else []


def _reads(reader: AnswerReader, pieces: list[str]) -> Any:
    for piece in pieces:
        yield reader.feed(piece)
    try:
        yield reader.end()
    except UnreadableAnswer:
        if not reader.has_told:
            raise


def outcome(pieces: list[str], form: Emulation, request: ChatRequest) -> object:
    """As `told_of`, or what is wrong with the answer."""
    try:
        return told_of(pieces, form, request)
    except UnreadableAnswer as exc:
        return exc.problem
