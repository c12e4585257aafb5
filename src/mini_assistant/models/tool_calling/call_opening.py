"""How models begin a call in plain text. Pure.

A form is a sequence of atoms, regular expressions that match few characters and never more than a fixed number. So it can be said of the
beginning of a text whether it has the form, may have it with the next piece, or never will.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

OPENING_CHARACTERS_MAX = 300
"""An opening that is longer is none."""

# The first key of an object that may be a call; any other object is told as it is written.
_FIRST_KEYS = {"name", "arguments", "parameters", "tool_calls", "next_step", "function", "type", "id"}

_BLANKS = r"\s{0,32}"
_FENCE = ["`", "`", "`", "`{0,5}", r"[\w+-]{0,32}", _BLANKS]
_NAME = [r"[\w.-]", r"[\w.-]{0,63}"]

_Part = tuple[str, Sequence[str]]


class Opening(msgspec.Struct, frozen=True):
    """The beginning of a call. body: where its JSON begins. name: of the tool, where that stands before the JSON.

    is_marked: it can be nothing but a call; else it is an object or a list with the keys of one. is_fenced: it begins with a fence.
    """

    body: int
    name: str | None
    is_marked: bool
    is_fenced: bool


class _Form:
    """parts: atoms with the name of the group that they are, or none."""

    def __init__(self, *parts: _Part, is_marked: bool) -> None:
        self.parts = parts
        self.is_marked = is_marked
        self.whole = re.compile("".join(f"(?P<{name}>{''.join(atoms)})" if name else "".join(atoms) for name, atoms in parts))

    def beginnings(self) -> str:
        """A pattern of all that may become the form."""
        pattern = ""
        for atom in reversed([atom for _, atoms in self.parts for atom in atoms]):
            pattern = f"(?:{atom}{pattern})?"
        return pattern


def _literal(text: str) -> _Part:
    return "", [re.escape(character) for character in text]


def _marked_forms() -> Iterator[_Form]:
    for marker in ("<tool_call>", "<|tool_call|>", "[TOOL_CALLS]"):
        yield _Form(_literal(marker), ("", [_BLANKS]), ("body", [r"[{\[]"]), is_marked=True)
    name, body = ("name", _NAME), ("body", [r"\{"])
    for wrapper in ([], [_literal("<tool_call>"), ("", [_BLANKS])]):
        yield _Form(*wrapper, _literal("<function="), name, ("", [">", _BLANKS]), body, is_marked=True)
    for between in ("", "[ARGS]"):
        yield _Form(_literal("[TOOL_CALLS]"), ("", [_BLANKS]), name, _literal(between), ("", [_BLANKS]), body, is_marked=True)


def _bare_forms() -> Iterator[_Form]:
    key = [("", ['"']), ("key", [r"\w{0,16}"]), ("", ['"', _BLANKS, ":"])]
    yield _Form(("body", [r"\{"]), ("", [_BLANKS]), *key, is_marked=False)
    yield _Form(("body", [r"\["]), ("", [_BLANKS, r"\{", _BLANKS]), *key, is_marked=False)


class _Forms:
    def __init__(self, forms: Sequence[_Form]) -> None:
        self.forms = forms
        self.beginnings = re.compile("|".join(form.beginnings() for form in forms))


_MARKED = list(_marked_forms())
_ALL = [*_MARKED, *_bare_forms()]
_ANYWHERE = _Forms(_MARKED)
_AT_LINE_BEGIN = _Forms(_ALL)
_FENCED = _Forms([_Form(("", _FENCE), *form.parts, is_marked=form.is_marked) for form in _ALL])


def opening_or_none(text: str, *, is_line_begin: bool) -> Opening | Literal["unsure"] | None:
    """The opening that a text begins with. is_line_begin: only blanks stand before it in its line, where not only marks count.

    `unsure`: it depends on what comes next.
    """
    window = text[:OPENING_CHARACTERS_MAX]
    is_fenced = is_line_begin and window.startswith("`")
    known = _FENCED if is_fenced else _AT_LINE_BEGIN if is_line_begin else _ANYWHERE
    for form in known.forms:
        if found := form.whole.match(window):
            groups: dict[str, str] = found.groupdict()
            is_one = form.is_marked or groups["key"] in _FIRST_KEYS
            return Opening(found.start("body"), groups.get("name"), form.is_marked, is_fenced) if is_one else None
    is_unsure = len(window) < OPENING_CHARACTERS_MAX and known.beginnings.fullmatch(window)
    return "unsure" if is_unsure else None
