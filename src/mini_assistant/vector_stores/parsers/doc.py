"""Legacy Word documents (DOC, Word 97 to 2003): the text of the piece table, with footnotes and text boxes, without headers.

Source: the published specification of the format, MS-DOC: sections 2.5 (FIB), 2.9.38 (Clx) and 2.9.177 (Pcd).
"""

import re
import struct
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import TextCollector, invalid_file
from mini_assistant.vector_stores.parsers.docx import parse_docx

_olefile: Any = import_module("olefile")  # it carries no types

_IDENT = 0xA5EC
_IDENT_OLDER = 0xA5DC
_IS_ENCRYPTED, _USES_TABLE_1 = 0x0100, 0x0200
_FLAGS_AT, _LENGTHS_AT, _CLX_AT = 0x0A, 0x4C, 0x1A2
_PRC, _PCDT = 1, 2
_IS_COMPRESSED = 0x40000000
_ZIP_MAGIC = b"PK\x03\x04"
_REFUSAL = "It is not a Word document of Word 97 or later. Save it as .docx and upload it again."

# Lengths, in the order in which the texts follow each other: the document, footnotes, headers, macros, comments, endnotes, text boxes,
# text boxes of headers.
_PARTS = 8
_PARTS_READ = (0, 1, 5, 6)
# A field is its instruction and, after the separator, what is shown.
_FIELD_MARKS = re.compile("[\x13\x14\x15]")
_MARKS = {0x01: None, 0x02: None, 0x03: None, 0x04: None, 0x05: None, 0x08: None, 0x1F: None, 0x0B: "\n", 0x0E: "\n", 0x1E: "-"}
_BLOCK_ENDS = re.compile("[\r\x0c]")


def parse_doc(path: str, characters_max: int) -> ParsedDocument:
    """The text of the document. One that is a DOCX by its content is read as that. Raises ParseFailed."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
            return parse_docx(path, characters_max)
    try:
        text = _text(path)
    except (OSError, struct.error, LookupError, ValueError, TypeError, AttributeError) as exc:
        raise invalid_file(_REFUSAL) from exc
    collector = TextCollector(characters_max)
    for block in _BLOCK_ENDS.split(_shown(text)):
        _add_block(block, collector)
    return collector.document()


def _add_block(block: str, collector: TextCollector) -> None:
    """A paragraph; or rows of a table, whose cells end in \\x07, and the rows in one more of it."""
    for place, row in enumerate(block.split("\x07\x07")):
        collector.add(" | ".join(cell.strip() for cell in row.split("\x07")).strip(" |"), follows_closely=place > 0)


def _text(path: str) -> str:
    with _olefile.OleFileIO(path) as container:
        if container.exists("EncryptedPackage"):
            raise invalid_file("It is protected by a password.")
        content: bytes = container.openstream("WordDocument").read()
        ident, flags = struct.unpack_from("<H", content)[0], struct.unpack_from("<H", content, _FLAGS_AT)[0]
        if ident == _IDENT_OLDER:
            raise invalid_file("It was saved by a version of Word before 97. Save it as .docx and upload it again.")
        if ident != _IDENT:
            raise invalid_file(_REFUSAL)
        if flags & _IS_ENCRYPTED:
            raise invalid_file("It is protected by a password.")
        table: bytes = container.openstream("1Table" if flags & _USES_TABLE_1 else "0Table").read()
    start, length = struct.unpack_from("<II", content, _CLX_AT)
    return _parts_read(b"".join(_pieces(content, _piece_table(table[start : start + length]))), content)


def _piece_table(clx: bytes) -> bytes:
    place = 0
    while clx[place] == _PRC:
        place += 3 + struct.unpack_from("<H", clx, place + 1)[0]
    if clx[place] != _PCDT:
        raise ValueError("no piece table")
    length = struct.unpack_from("<I", clx, place + 1)[0]
    return clx[place + 5 : place + 5 + length]


def _pieces(content: bytes, table: bytes) -> Iterator[bytes]:
    """The pieces in UTF-16, in order. Each is stored as that, or as one byte a character."""
    count = (len(table) - 4) // 12
    ends = struct.unpack_from(f"<{count + 1}I", table)
    for place in range(count):
        position = struct.unpack_from("<I", table, 4 * (count + 1) + 8 * place + 2)[0]
        units = ends[place + 1] - ends[place]
        if units < 0:
            raise ValueError("pieces overlap")
        if position & _IS_COMPRESSED:
            start = (position & ~_IS_COMPRESSED) // 2
            yield content[start : start + units].decode("cp1252", "replace").encode("utf-16-le")
        else:
            yield content[position : position + 2 * units]


def _parts_read(text: bytes, content: bytes) -> str:
    lengths = struct.unpack_from(f"<{_PARTS}i", content, _LENGTHS_AT)
    found: list[str] = []
    start = 0
    for part, length in enumerate(lengths):
        end = start + 2 * max(0, length)
        if part in _PARTS_READ:
            found.append(text[start:end].decode("utf-16-le", "replace"))
        start = end
    return "\r".join(found)


def _shown(text: str) -> str:
    """The text without the instructions of fields, such as the address of a link, and without marks of what is no text."""
    shown: list[str] = []
    instructions = 0
    open_fields: list[bool] = []  # of each: whether its instruction is being read
    place = 0
    for mark in _FIELD_MARKS.finditer(text):
        if not instructions:
            shown.append(text[place : mark.start()])
        place = mark.end()
        if mark[0] == "\x13":
            open_fields.append(True)
            instructions += 1
        elif open_fields and mark[0] == "\x14":
            instructions -= open_fields[-1]
            open_fields[-1] = False
        elif open_fields:
            instructions -= open_fields.pop()
    if not instructions:
        shown.append(text[place:])
    return "".join(shown).translate(_MARKS)
