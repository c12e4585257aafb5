"""PDF, by PDFium: the text of each page, with the pages kept."""

import re
from importlib import import_module
from typing import Any

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import TextCollector, invalid_file

_pdfium: Any = import_module("pypdfium2")  # it carries no types

_PASSWORD_IS_WRONG = 4
# How PDFium shows a hyphen at the end of a line that is not part of the word.
_SOFT_HYPHENS = re.compile("[\x02\xad\ufffe]\r?\n?")


def parse_pdf(path: str, characters_max: int) -> ParsedDocument:
    """The text of all pages. Raises ParseFailed; a page that is broken in itself is left out."""
    document = _opened(path)
    collector = TextCollector(characters_max)
    for place in range(len(document)):
        collector.add(_SOFT_HYPHENS.sub("", _page_text(document, place)))
        collector.end_page(place + 1)
    if collector.is_empty:
        raise invalid_file("It has no text; it is probably scanned.")
    return collector.document()


def _opened(path: str) -> Any:
    try:
        return _pdfium.PdfDocument(path)
    except _pdfium.PdfiumError as exc:
        if exc.err_code == _PASSWORD_IS_WRONG:
            raise invalid_file("It is protected by a password.") from exc
        raise invalid_file("It is not a valid PDF document.") from exc


def _page_text(document: Any, place: int) -> str:
    try:
        page = document[place]
    except _pdfium.PdfiumError:
        return ""
    try:
        text_page = page.get_textpage()
        try:
            return text_page.get_text_bounded()
        finally:
            text_page.close()
    except _pdfium.PdfiumError:
        return ""
    finally:
        page.close()
