"""Plain text, source code, Markdown and JSON: the bytes are the document, once their encoding is known.

UTF-8, UTF-16 and ASCII, as the API has it. UTF-16 without a mark is guessed. Beyond the API, text that can only be Western European
(Windows-1252, Latin-1) is read too; every other encoding is refused, because a wrong guess would fill the store with nonsense.
"""

import codecs
import os
import re

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import cleaned, invalid_file, too_large

_UTF8_BYTES_PER_CHARACTER_MAX = 4
_WRONG_ENCODING = "Text must be encoded in UTF-8, UTF-16 or ASCII."

# Control characters that no text has, unlike tab, the ends of lines, form feed and escape; and the codes that Unicode never assigns.
_NOT_TEXT = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff\ue000-\uf8ff]")
_NOT_LATIN = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\x81\x8d\x8f\x90\x9d]|[\x80-\xff]{4}")
_LATIN_HIGH_SHARE_MAX = 0.15
_ASCII_IN_UTF16_SHARE_MIN = 0.01


def parse_text(path: str, characters_max: int) -> ParsedDocument:
    """The file's text. Raises ParseFailed for other encodings, too long texts and blank ones."""
    text = cleaned(decoded(read_bounded(path, characters_max)))
    if len(text) > characters_max:
        raise too_large()
    if not text or text.isspace():
        raise invalid_file("It has no text.")
    return ParsedDocument(text=text)


def read_bounded(path: str, characters_max: int) -> bytes:
    """The file's bytes. Raises ParseFailed, without reading, when no encoding makes them short enough."""
    if os.path.getsize(path) > characters_max * _UTF8_BYTES_PER_CHARACTER_MAX:
        raise too_large()
    with open(path, "rb") as file:
        return file.read()


def decoded(content: bytes) -> str:
    """The text of bytes whose encoding nobody told. Raises ParseFailed."""
    text = _decoded_or_none(content)
    if text is None:
        raise invalid_file(_WRONG_ENCODING)
    return text


def _decoded_or_none(content: bytes) -> str | None:
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) and len(content) % 4 == 0:
        return None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode_or_none(content, "utf-16")
    text = _decode_or_none(content, "utf-8-sig")
    if text is not None and "\0" not in text:
        return text
    return _utf16_or_none(content) or _latin_or_none(content)


def _decode_or_none(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _utf16_or_none(content: bytes) -> str | None:
    """The text of UTF-16 without a mark: only one order of bytes gives text, and some of it is ASCII, at least spaces and ends of lines."""
    if len(content) % 2:
        return None
    candidates = [(content[1::2].count(0), "utf-16-le"), (content[0::2].count(0), "utf-16-be")]
    zeros, encoding = max(candidates)
    if zeros < max(1, _ASCII_IN_UTF16_SHARE_MIN * len(content) / 2):
        return None
    text = _decode_or_none(content, encoding)
    return text if text is not None and not _NOT_TEXT.search(text) else None


def _latin_or_none(content: bytes) -> str | None:
    """Western European text: letters with accents are few, and stand alone or in short runs, unlike letters of other scripts."""
    if _NOT_LATIN.search(content):
        return None
    high = len(content) - len(content.translate(None, bytes(range(0x80, 0x100))))
    if high > _LATIN_HIGH_SHARE_MAX * len(content):
        return None
    return _decode_or_none(content, "cp1252")
