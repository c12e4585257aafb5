"""The annotations of a text while it is being written: citations of passages, and links to files. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from mini_assistant.runs.citations import CitedText, Piece, Sources
from mini_assistant.runs.file_links import LinkedText


class Citable(NamedTuple):
    """What a text may refer to.

    sources: passages of searches; None when the run cannot search, and what looks like a citation is text. files: ids of files that
    code has written, by their path in the data directory.
    """

    sources: Sources | None
    files: Mapping[str, str]


class AnnotatedText:
    """The text of one part while it is being written. However the text comes in pieces, the same is told of it."""

    def __init__(self, citable: Citable) -> None:
        self._cited = None if citable.sources is None else CitedText(citable.sources)
        self._linked = LinkedText(citable.files) if citable.files else None

    def add(self, text: str) -> list[Piece]:
        """Take a piece; returns what can be told now. The end of the text is held back while it may become an annotation."""
        return self._with_links([Piece(text)] if self._cited is None else self._cited.add(text))

    def end(self) -> list[Piece]:
        """The text is whole: the rest of it."""
        pieces = [] if self._cited is None else self._with_links(self._cited.end())
        return pieces if self._linked is None else [*pieces, *self._linked.end()]

    def _with_links(self, pieces: list[Piece]) -> list[Piece]:
        linked = self._linked
        return pieces if linked is None else [told for piece in pieces for told in linked.add(piece)]
