"""The value of a JSON string while it is being written. Pure."""

import re

_PLAIN = re.compile(r'[^"\\]+')
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_MEANINGS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNPAIRED = "\ufffd"


class JsonString:
    """A string behind its opening quote. Line ends in it and backslashes that escape nothing are taken as they are."""

    def __init__(self) -> None:
        self.has_ended = False
        self._held = ""  # an escape that has begun, at most 5 characters
        self._high = 0  # the first half of a pair

    def feed(self, piece: str) -> str:
        """The part of the value that is new with this piece."""
        text, place = self._held + piece, 0
        found: list[str] = []
        while place < len(text) and not self.has_ended and not _BEGUN_ESCAPE.match(text, place):
            if plain := _PLAIN.match(text, place):
                self._put(found, plain[0])
                place = plain.end()
            elif text[place] == '"':
                self._put(found, "")
                self.has_ended = True
            elif escape := _ESCAPE.match(text, place):
                self._put_escape(found, escape)
                place = escape.end()
            else:
                self._put(found, "\\")
                place += 1
        self._held = "" if self.has_ended else text[place:]
        return "".join(found)

    def end(self) -> str:
        """Nothing comes any more; returns the rest of a value that was not closed."""
        found: list[str] = []
        self._put(found, self._held)
        self._held = ""
        self.has_ended = True
        return "".join(found)

    def _put(self, found: list[str], text: str) -> None:
        if self._high:
            found.append(_UNPAIRED)
            self._high = 0
        found.append(text)

    def _put_escape(self, found: list[str], escape: re.Match[str]) -> None:
        if escape[1] is None:
            self._put(found, _MEANINGS.get(escape[2], escape[2]))
            return
        unit = int(escape[1], 16)
        if 0xDC00 <= unit < 0xE000 and self._high:
            found.append(chr(0x10000 + ((self._high - 0xD800) << 10) + (unit - 0xDC00)))
            self._high = 0
        elif 0xD800 <= unit < 0xDC00:
            self._put(found, "")
            self._high = unit
        else:
            self._put(found, _UNPAIRED if 0xDC00 <= unit < 0xE000 else chr(unit))
