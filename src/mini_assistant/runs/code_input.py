"""The code of a code_interpreter call while the model writes its arguments. Pure.

Arguments are JSON, `{"code": "..."}`, of which the step shows the code itself. Models also write other names, or code without JSON.
"""

import re

import msgspec

_NAMES = ("code", "input", "python", "source")
_BEGIN = re.compile(rf'\s*\{{\s*"(?:{"|".join(_NAMES)})"\s*:\s*"')
_PART = re.compile(r'[^"\\]+')
_HIGH, _LOW = r"u[dD][89abAB][0-9a-fA-F]{2}", r"u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf'\\(?:{_HIGH}\\{_LOW}|u[0-9a-fA-F]{{4}}|["\\/bfnrt])')
_HALF_A_PAIR = re.compile(rf"\\(?:{_HIGH}|{_LOW})")
# What may still become an escape, or a pair of them.
_BEGUN_ESCAPE = re.compile(rf"\\(?:u[0-9a-fA-F]{{0,3}}|{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?\Z")


class CodeInput:
    """The arguments of one call. `code` is what has been told of them; after `end` all of it."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._held = ""
        self._has_begun = False
        self._has_ended = False

    @property
    def code(self) -> str:
        return "".join(self._told)

    def add(self, piece: str) -> str:
        """Take a piece of the arguments; returns the code that is new in it, perhaps none."""
        if self._has_ended:
            return ""
        self._held += piece
        if not self._has_begun:
            begin = _BEGIN.match(self._held)
            if begin is None:
                return ""
            self._has_begun = True
            self._held = self._held[begin.end() :]
        return self._tell(self._unescaped())

    def end(self) -> str:
        """The arguments are whole; returns the rest of the code."""
        if self._has_begun:
            return "" if self._has_ended else self._tell(self._unescaped(is_whole=True))
        self._has_begun = self._has_ended = True
        return self._tell(_code_of(self._held)) if self._held.strip() else ""

    def _tell(self, text: str) -> str:
        if text:
            self._told.append(text)
        return text

    def _unescaped(self, *, is_whole: bool = False) -> str:
        """What can be read of the string now. Line ends within it, which are no JSON, are taken as they are."""
        held, place, found = self._held, 0, list[str]()
        while place < len(held) and not self._has_ended:
            if part := _PART.match(held, place):
                found.append(part[0])
                place = part.end()
            elif held[place] == '"':
                self._has_ended = True
            elif not is_whole and _BEGUN_ESCAPE.match(held, place):
                break
            elif part := _ESCAPE.match(held, place):
                found.append("\ufffd" if _HALF_A_PAIR.fullmatch(part[0]) else msgspec.json.decode(f'"{part[0]}"', type=str))
                place = part.end()
            else:
                found.append("\\")  # no escape of JSON: models forget to double the backslash
                place += 1
        self._held = held[place:]
        return "".join(found)


def _code_of(arguments: str) -> str:
    """The code of arguments that did not begin as they should; text that is no such object is code itself."""
    try:
        decoded: object = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return arguments
    if isinstance(decoded, str):
        return decoded
    if not isinstance(decoded, dict):
        return arguments
    named: list[object] = [decoded[name] for name in _NAMES if name in decoded]  # pyright: ignore[reportUnknownVariableType]
    return next((value for value in named if isinstance(value, str)), "")
