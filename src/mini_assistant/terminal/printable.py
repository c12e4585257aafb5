"""Makes text of others fit for a terminal. Models, files and servers may write what moves the cursor, changes the title or types. Pure."""

import re
import unicodedata

# Control characters but tab and newline; what turns the direction of text; halves of characters, which no encoding takes.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters written out (`\\x1b`), which then do nothing. Lines stay lines."""
    return _UNFIT.sub(_written_out, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same for names and titles, which have no lines."""
    return printable(text).replace("\n", "\\n").replace("\t", " ")


def fitted(text: str, columns: int) -> str:
    """The beginning of a line that takes at most so many columns."""
    taken = 0
    for place, character in enumerate(text):
        taken += _columns_of(character)
        if taken > columns:
            return text[:place]
    return text


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _written_out(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
