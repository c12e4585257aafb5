"""The seam to document parsers: from an uploaded file to its text, with pages kept for citations."""

from typing import Literal, NamedTuple, Protocol

import msgspec


class Page(NamedTuple):
    """A page (or slide) of a document: its number, from 1, and where its text lies: half-open, in code points."""

    number: int
    start: int
    end: int


class ParsedDocument(msgspec.Struct, frozen=True):
    """The text of a document. pages: empty for files that have none; in order and without overlap otherwise."""

    text: str
    pages: tuple[Page, ...] = ()


class ParseFailed(Exception):
    """A file has no text that could be read. The message is for the owner of the file and says why.

    code: as in `last_error` of a vector store file. Source: behaviour §6.
    """

    def __init__(self, code: Literal["unsupported_file", "invalid_file"], message: str) -> None:
        super().__init__(message)
        self.code: Literal["unsupported_file", "invalid_file"] = code
        self.message = message


class DocumentParser(Protocol):
    """Reads documents that nobody vouches for; time and memory are bounded whatever is in them."""

    async def parse(self, path: str, filename: str) -> ParsedDocument:
        """The text of the file at `path`; the extension of `filename` says what it is.

        Raises ParseFailed.
        """
        ...

    async def close(self) -> None:
        """End the processes that parse."""
        ...
