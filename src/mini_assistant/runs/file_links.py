"""How an answer links to files that code has made: `sandbox:/mnt/data/NAME` becomes an annotation. Pure.

The text stays as the model wrote it. A link to a file that no code of the run has written gets no annotation: there is nothing to
download. Source: behaviour §8.
"""

import re
from collections.abc import Mapping
from urllib.parse import quote

from mini_assistant.runs.citations import Piece
from mini_assistant.threads.schema import FilePath, FilePathAnnotation

_PREFIX = "sandbox:/mnt/data/"
# The prefix, or what may still become one at the end of the text.
_OPENING = re.compile("|".join([_PREFIX, *(rf"{_PREFIX[:length]}\Z" for length in range(len(_PREFIX) - 1, 0, -1))]))
# What stands behind a name when it is whole; `a.csv.` ends a sentence, `a.csv.gz` is another file.
_NAME_ENDS = re.compile(r"(?![\w-]|\.[\w-])")


class LinkedText:
    """The text of one part while it is being written. However the text comes in pieces, the same is told of it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """files: the ids of files by their path in the data directory."""
        self._file_ids = {spelled: file_id for name, file_id in files.items() for spelled in (name, quote(name))}
        self._longest_first = sorted(self._file_ids, key=len, reverse=True)
        self._held = ""
        self._told_characters = 0

    def add(self, piece: Piece) -> list[Piece]:
        """Take a piece; returns what can be told now. The end of the text is held back while it may become a link."""
        if piece.annotation is not None:
            pieces = [*self.end(), piece]
            self._told_characters += len(piece.text)
            return pieces
        if not self._held and _OPENING.search(piece.text) is None:
            return self._told(piece.text)
        text, self._held = self._held + piece.text, ""
        return self._linked(text, is_whole=False)

    def end(self) -> list[Piece]:
        """The text is whole, or something else follows: nothing is held back any more."""
        held, self._held = self._held, ""
        return self._linked(held, is_whole=True)

    def _linked(self, text: str, *, is_whole: bool) -> list[Piece]:
        pieces: list[Piece] = []
        begin = place = 0
        while opening := _OPENING.search(text, place):
            at = opening.start()
            rest = text[at + len(_PREFIX) :]
            name = self._name_or_none(rest)
            if not is_whole and (len(text) - at < len(_PREFIX) or self._may_change(rest, name)):
                self._held, text = text[at:], text[:at]
                break
            place = at + 1
            if name is not None:
                end = at + len(_PREFIX) + len(name)
                pieces += [*self._told(text[begin:at]), self._link(text[at:end], self._file_ids[name])]
                begin = place = end
        return [*pieces, *self._told(text[begin:])]

    def _name_or_none(self, rest: str) -> str | None:
        """The longest name of a file with which the text behind the prefix begins."""
        return next((name for name in self._longest_first if rest.startswith(name) and _NAME_ENDS.match(rest, len(name))), None)

    def _may_change(self, rest: str, name: str | None) -> bool:
        """Whether what follows decides which file is meant: a longer name has begun, or the name is not known to have ended."""
        if name is not None and rest in (name, f"{name}."):
            return True
        return any(len(longer) > len(rest) and longer.startswith(rest) for longer in self._longest_first)

    def _link(self, text: str, file_id: str) -> Piece:
        begin = self._told_characters
        self._told_characters += len(text)
        return Piece(text, FilePathAnnotation(text, begin, self._told_characters, FilePath(file_id)))

    def _told(self, text: str) -> list[Piece]:
        self._told_characters += len(text)
        return [Piece(text)] if text else []
