"""JSON as models write it: where a value ends in a text that is still arriving, and what is in it. Pure; nothing here recurses."""

import json
import re
from collections.abc import Iterator

import msgspec

DEPTH_MAX = 100
"""How deeply objects and lists may lie in each other."""

VALUES_MAX = 100
"""How many values are looked at in a text."""

_OUTSIDE_STRINGS = re.compile(r'[^"{}\[\]]*')
_INSIDE_STRING = re.compile(r'[^"\\]*')
_BEGIN = re.compile(r"[{\[]")
_OPENED_BY = {"}": "{", "]": "["}
_BROKEN = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError)

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)


class JsonScan:
    """Looks for the end of one object or list. has_failed: brackets did not match, or lie too deeply in each other."""

    def __init__(self) -> None:
        self.has_failed = False
        self._open: list[str] = []
        self._is_in_string = False
        self._is_escaped = False

    def feed(self, text: str, place: int = 0) -> int | None:
        """Go on with `text` from `place`. Returns where in it the value ends, or has failed; None when that is not in it."""
        while place < len(text):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            skipped = (_INSIDE_STRING if self._is_in_string else _OUTSIDE_STRINGS).match(text, place)
            place = skipped.end() if skipped else place
            if place == len(text):
                return None
            place += 1
            if self._is_over(text[place - 1]):
                return place
        return None

    def _is_over(self, character: str) -> bool:
        if self._is_in_string:
            self._is_escaped = character == "\\"
            self._is_in_string = self._is_escaped
        elif character == '"':
            self._is_in_string = True
        elif character in "{[":
            self._open.append(character)
            self.has_failed = len(self._open) > DEPTH_MAX
        else:
            self.has_failed = not self._open or self._open.pop() != _OPENED_BY[character]
            return not self._open or self.has_failed
        return self.has_failed


def json_values(text: str) -> Iterator[str]:
    """The objects and lists in a text, in its order, as JSON that can be read. Those within others are not looked for."""
    end = 0
    for _ in range(VALUES_MAX):
        begin = _BEGIN.search(text, end)
        if begin is None:
            return
        scan = JsonScan()
        end = scan.feed(text, begin.start())
        if end is None:
            return
        value = None if scan.has_failed else valid_json_or_none(text[begin.start() : end])
        if value is not None:
            yield value


def valid_json_or_none(text: str) -> str | None:
    """The text itself when it is JSON. Line ends and other control characters within strings are written as JSON has them."""
    try:
        msgspec.json.decode(text)
    except _BROKEN:
        return _without_control_characters(text)
    return text


def _without_control_characters(text: str) -> str | None:
    try:
        return msgspec.json.encode(json.loads(text, strict=False, parse_constant=_refuse)).decode()
    except _BROKEN:
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def fields_or_none(text: str) -> dict[str, str] | None:
    """The members of an object, each as JSON text; None when the text is no object."""
    try:
        return {name: bytes(value).decode() for name, value in _FIELDS.decode(text).items()}
    except _BROKEN:
        return None


def items_or_none(text: str) -> list[str] | None:
    """The items of a list, each as JSON text; None when the text is no list."""
    try:
        return [bytes(value).decode() for value in _ITEMS.decode(text)]
    except _BROKEN:
        return None


def string_or_none(text: str) -> str | None:
    """A string's value; None when the text is no string."""
    try:
        return _STRING.decode(text)
    except _BROKEN:
        return None


def on_one_line(text: str) -> str:
    """Valid JSON without line ends, its values untouched."""
    return msgspec.json.format(text, indent=0)
