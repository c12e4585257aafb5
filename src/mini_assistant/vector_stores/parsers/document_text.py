"""Puts the text of a document together while it is parsed, within its limits; and the ways in which a file can be refused.

All text leaves here clean: lines end in "\\n", and there are no NULs and lone surrogates, which databases and tokenizers refuse.
"""

import re

from mini_assistant.vector_stores.parsers.base import Page, ParsedDocument, ParseFailed

_SURROGATES = re.compile("[\ud800-\udfff]")


def invalid_file(reason: str) -> ParseFailed:
    """The file is not what it seems to be, or has nothing to read. reason: a sentence for its owner. Source: behaviour §6."""
    return ParseFailed("invalid_file", f"The file could not be parsed. {reason}")


def too_large() -> ParseFailed:
    """The text of the file, or what it takes to read it, goes beyond the limits. Source: behaviour §6."""
    return ParseFailed("invalid_file", "The file could not be parsed because it is too large.")


def unsupported_file() -> ParseFailed:
    """The extension is not one that can be parsed. Source: behaviour §6."""
    return ParseFailed("unsupported_file", "The file type is not supported.")


def cleaned(text: str) -> str:
    """The text with "\\n" as the end of every line, without NULs, and with U+FFFD for lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _without_blank_ends(block: str) -> str:
    """Without blank lines at both ends; the first line keeps its indentation."""
    block = block.rstrip()
    margin = len(block) - len(block.lstrip())
    return block[block.rfind("\n", 0, margin) + 1 :]


class TextCollector:
    """The blocks of a document in reading order, with an empty line between two. characters_max: of the whole text."""

    def __init__(self, characters_max: int) -> None:
        self._characters_max = characters_max
        self._parts: list[str] = []
        self._length = 0
        self._pages: list[Page] = []
        self._page_start: int | None = None

    def add(self, block: str, *, follows_closely: bool = False) -> None:
        """Add a paragraph, a row or an item. Blank ones leave no trace. Raises ParseFailed when the text gets too long.

        follows_closely: it stands on the next line, as rows of a table do.
        """
        block = _without_blank_ends(cleaned(block))
        if not block:
            return
        if self._parts:
            self._append("\n" if follows_closely else "\n\n")
        if self._page_start is None:
            self._page_start = self._length
        self._append(block)

    def end_page(self, number: int) -> None:
        """What was added since the page before is the page of this number, from 1. A page without text is left out."""
        if self._page_start is not None:
            self._pages.append(Page(number, self._page_start, self._length))
            self._page_start = None

    def document(self) -> ParsedDocument:
        """All that was added. Raises ParseFailed when that is nothing."""
        if not self._parts:
            raise invalid_file("It has no text.")
        return ParsedDocument(text="".join(self._parts), pages=tuple(self._pages))

    @property
    def is_empty(self) -> bool:
        return not self._parts

    def _append(self, part: str) -> None:
        self._length += len(part)
        if self._length > self._characters_max:
            raise too_large()
        self._parts.append(part)
