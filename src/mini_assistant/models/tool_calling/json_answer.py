"""Reads answers on the rungs whose answers are JSON: a reply is told while it is being written, calls when the answer is whole."""

import re

from mini_assistant.models.base import TextDelta, ToolCallDelta
from mini_assistant.models.tool_calling.json_string import JsonString
from mini_assistant.models.tool_calling.json_text import JsonScan, fields_or_none, json_values
from mini_assistant.models.tool_calling.offer import Offer, UnreadableAnswer
from mini_assistant.models.tool_calling.written_step import WrittenStep, step_or_none

_REPLY = re.compile(r'\s*(?:```(?:json)?\s*)?\{\s*(?:"next_step"\s*:\s*\{\s*)?"reply"\s*:\s*(["{\[])')
# A reply that begins later than this is told at the end.
_BEGIN_CHARACTERS_MAX = 256
_MEANT_AS_JSON = re.compile(r'\A\s*(?:[{\[]|```)|"next_step"|"tool_calls"')


class JsonAnswer:
    """An answer that should be one next step. is_reply_json: the reply is an object, not text."""

    def __init__(self, offer: Offer, *, is_reply_json: bool) -> None:
        self.has_told = False
        self._offer = offer
        self._is_reply_json = is_reply_json
        self._pieces: list[str] = []
        self._begin = ""
        self._reply: JsonString | _JsonReply | None = None
        # A reply is no answer where a call is demanded.
        self._may_reply_begin = not offer.is_demanded

    def feed(self, piece: str) -> list[TextDelta | ToolCallDelta]:
        """What can be told with this piece."""
        self._pieces.append(piece)
        if self._reply is not None:
            return self._told(self._reply.feed(piece))
        if not self._may_reply_begin:
            return []
        self._begin = (self._begin + piece)[:_BEGIN_CHARACTERS_MAX]
        begin = _REPLY.match(self._begin)
        if begin is None:
            self._may_reply_begin = len(self._begin) < _BEGIN_CHARACTERS_MAX
            return []
        is_string = begin[1] == '"'
        self._reply = JsonString() if is_string else _JsonReply()
        return self._told(self._reply.feed("".join(self._pieces)[begin.end() if is_string else begin.start(1) :]))

    def end(self) -> list[TextDelta | ToolCallDelta]:
        """The rest. Raises UnreadableAnswer when nothing of the answer can be used."""
        rest = self._told("" if self._reply is None else self._reply.end())
        text = "".join(self._pieces)
        if not self.has_told:
            return self._deltas(_written_step(text, self._offer, is_reply_json=self._is_reply_json))
        try:
            step = next((step for value in json_values(text) if (step := step_or_none(value, self._offer))), None)
            calls = self._offer.accepted(step.calls) if step else []
        except UnreadableAnswer:
            calls = []  # the reply has been told, and is an answer by itself
        return [*rest, *calls]

    def _told(self, text: str) -> list[TextDelta | ToolCallDelta]:
        self.has_told = self.has_told or bool(text)
        return [TextDelta(text)] if text else []

    def _deltas(self, step: WrittenStep) -> list[TextDelta | ToolCallDelta]:
        if not step.calls:
            if self._offer.is_demanded:
                raise UnreadableAnswer(f"It holds no tool call. {self._offer.demand}")
            if not step.reply:
                raise UnreadableAnswer("The reply was empty.")
        calls = self._offer.accepted(step.calls)
        deltas = [*self._told(step.reply or ""), *calls]
        self.has_told = True
        return deltas


class _JsonReply:
    """A reply that is an object or a list, from its bracket on; told as it is written."""

    def __init__(self) -> None:
        self._scan = JsonScan()
        self._has_ended = False

    def feed(self, piece: str) -> str:
        if self._has_ended:
            return ""
        end = self._scan.feed(piece)
        self._has_ended = end is not None
        return piece[:end]

    def end(self) -> str:
        return ""


def _written_step(text: str, offer: Offer, *, is_reply_json: bool) -> WrittenStep:
    if not text.strip():
        raise UnreadableAnswer("The answer was empty.")
    for value in json_values(text):
        step = step_or_none(value, offer)
        if step is not None:
            return step
    if is_reply_json and fields_or_none(text) is not None:
        return WrittenStep(text.strip(), [])
    if not _MEANT_AS_JSON.search(text) and not is_reply_json:
        return WrittenStep(text, [])
    raise UnreadableAnswer("It is not the JSON object that was asked for.")
