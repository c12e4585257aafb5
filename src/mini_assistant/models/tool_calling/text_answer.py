"""Reads answers in plain words that may hold tool calls, as models without the API's own write them.

Words are told while they arrive. What may be the beginning of a call is held back until it is a call of an offered tool, or is not: then
it is told as the text that it is. After the first call nothing is told but calls: words that follow are outputs that the model made up.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from mini_assistant.models.base import TextDelta, ToolCallDelta
from mini_assistant.models.tool_calling.call_opening import OPENING_CHARACTERS_MAX, Opening, opening_or_none
from mini_assistant.models.tool_calling.json_text import JsonScan, fields_or_none, valid_json_or_none
from mini_assistant.models.tool_calling.offer import Offer, UnreadableAnswer, WrittenCall
from mini_assistant.models.tool_calling.written_step import calls_of

# What no form of an opening begins with, so that it need not be looked at character by character.
_WORDS = re.compile(r"""(?:[^<\[`{\n]++|<(?![tf|]|\Z)|\[(?![T{\s]|\Z)|\{(?!["\s]|\Z))++""")
_FENCE = re.compile(r"`{3,}")
_NAMED = re.compile(r'"name"\s{0,32}:\s{0,32}"([^"\\]{1,64})"')
_NAMED_WITHIN_CHARACTERS = 4000


@dataclass(slots=True)
class _Candidate:
    """What may be a call: its opening, and the JSON behind it as far as it is here."""

    opening: Opening
    before: str
    pieces: list[str] = field(default_factory=list[str])
    scan: JsonScan = field(default_factory=JsonScan)


class TextAnswer:
    """An answer on the rung of plain words."""

    def __init__(self, offer: Offer) -> None:
        self.has_told = False
        self._offer = offer
        self._unsure = ""  # the beginning of what may be an opening; bounded
        self._candidate: _Candidate | None = None
        self._is_line_begin = True
        self._fence: Literal["none", "text", "calls"] = "none"
        self._blanks: list[str] = []  # told when words follow: those around a call are not part of the answer
        self._unsaid: list[str] = []  # words before a call that is demanded
        self._calls = 0
        self._problem: str | None = None
        self._out: list[TextDelta | ToolCallDelta] = []

    def feed(self, piece: str) -> list[TextDelta | ToolCallDelta]:
        """What can be told with this piece."""
        self._take(self._unsure + piece, is_whole=False)
        return self._taken_out()

    def end(self) -> list[TextDelta | ToolCallDelta]:
        """The rest. Raises UnreadableAnswer when nothing of the answer can be used."""
        self._take(self._unsure, is_whole=True)
        if self._candidate is not None:
            self._judge(self._candidate, is_whole=False)
        if not self._calls:
            self._check_usable()
            self._out += [TextDelta(blanks)] if (blanks := "".join(self._blanks)) else []
        return self._taken_out()

    def _check_usable(self) -> None:
        if self._problem is not None:
            raise UnreadableAnswer(self._problem)
        if not self.has_told and not self._unsaid:
            raise UnreadableAnswer("The answer was empty.")
        if self._offer.is_demanded:
            raise UnreadableAnswer(f"It holds no tool call. {self._offer.demand}")

    def _taken_out(self) -> list[TextDelta | ToolCallDelta]:
        """What was told since the last time, its text in one piece where nothing lies between."""
        out, self._out = self._out, []
        joined: list[TextDelta | ToolCallDelta] = []
        texts: list[str] = []
        for delta in [*out, None]:
            if isinstance(delta, TextDelta):
                texts.append(delta.text)
                continue
            if texts:
                joined.append(TextDelta("".join(texts)))
                texts.clear()
            if delta is not None:
                joined.append(delta)
        return joined

    def _take(self, text: str, *, is_whole: bool) -> None:
        self._unsure = ""
        place = 0
        while place < len(text):
            if self._candidate is None:
                place = self._take_words(text, place, is_whole=is_whole)
            else:
                place = self._take_json(self._candidate, text, place)

    def _take_words(self, text: str, place: int, *, is_whole: bool) -> int:
        """Go on to the next place where a call may begin; returns how far the text has been taken."""
        words = _WORDS.match(text, place)
        if words is not None:
            self._say(words[0])
            # Several objects in one line are several calls.
            self._is_line_begin = self._is_line_begin and not words[0].strip(" \t\r,;" if self._calls else " \t\r")
            return words.end()
        character = text[place]
        if character == "\n":
            self._say(character)
            self._is_line_begin = True
            return place + 1
        opening = self._opening(text, place)
        if opening == "unsure" and not is_whole:
            self._unsure = text[place:]
            return len(text)
        if isinstance(opening, Opening):
            self._candidate = _Candidate(opening, text[place : place + opening.body])
            return place + opening.body
        fence = _FENCE.match(text, place) if self._is_line_begin else None
        if fence is not None:
            self._fence = "text" if self._fence == "none" else "none"
        end = place + 1 if fence is None else fence.end()
        self._say(text[place:end])
        self._is_line_begin = False
        return end

    def _opening(self, text: str, place: int) -> Opening | Literal["unsure"] | None:
        """What begins here. Within a fence that holds no calls, and at the end of any, nothing but the fence's end is looked for."""
        is_fence = text[place] == "`" and self._is_line_begin
        if self._fence == "none" or (self._fence == "calls" and not is_fence):
            return opening_or_none(text[place : place + OPENING_CHARACTERS_MAX], is_line_begin=self._is_line_begin)
        return "unsure" if is_fence and text[place : place + 3] in ("`", "``") and place + 3 > len(text) else None

    def _take_json(self, candidate: _Candidate, text: str, place: int) -> int:
        end = candidate.scan.feed(text, place)
        candidate.pieces.append(text[place:end])
        if end is None:
            return len(text)
        self._judge(candidate, is_whole=not candidate.scan.has_failed)
        return end

    def _judge(self, candidate: _Candidate, *, is_whole: bool) -> None:
        """Tell what a candidate is. is_whole: its JSON has an end."""
        self._candidate = None
        opening, body = candidate.opening, "".join(candidate.pieces)
        is_attempt = True
        try:
            calls = self._read_calls(opening, body, is_whole=is_whole)
            is_attempt = opening.is_marked or (self._offer.is_demanded and bool(calls))
            if calls:
                self._call(self._offer.accepted(calls, self._calls), is_fenced=opening.is_fenced)
                return
            problem = "A tool call must be a JSON object with a name and arguments."
        except UnreadableAnswer as exc:
            problem = exc.problem
        if is_attempt and not self.has_told:
            self._problem = problem
            self._unsaid.clear()
        self._say(candidate.before + body)
        self._is_line_begin = False
        if opening.is_fenced:
            self._fence = "text" if self._problem is None else "calls"

    def _read_calls(self, opening: Opening, body: str, *, is_whole: bool) -> list[WrittenCall]:
        """The calls in a candidate, perhaps none. Raises UnreadableAnswer when it was to be one and is broken."""
        value = valid_json_or_none(body) if is_whole else None
        if value is None:
            named = _NAMED.search(body, 0, _NAMED_WITHIN_CHARACTERS)
            if opening.is_marked or (named is not None and self._offer.has(named[1])):
                raise UnreadableAnswer("The JSON of the tool call is broken.")
            return []
        if opening.name is not None:
            return [WrittenCall(opening.name, None if fields_or_none(value) is None else value)]
        return calls_of(value, self._offer)

    def _call(self, calls: list[ToolCallDelta], *, is_fenced: bool) -> None:
        self._out += [*([TextDelta("".join(self._unsaid))] if self._unsaid else []), *calls]
        self.has_told = True
        self._calls += len(calls)
        self._unsaid.clear()
        self._blanks.clear()
        self._is_line_begin = True
        if is_fenced:
            self._fence = "calls"

    def _say(self, text: str) -> None:
        if self._calls or self._problem is not None:
            return
        words = text.rstrip()
        if not words:
            self._blanks.append(text)
            return
        told = "".join([*self._blanks, words])
        self._blanks = [text[len(words) :]] if len(words) < len(text) else []
        if self._offer.is_demanded:
            self._unsaid.append(told)
        else:
            self._out.append(TextDelta(told))
            self.has_told = True
