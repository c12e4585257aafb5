"""Word documents (DOCX): headers, then paragraphs, lists and tables in reading order, then footnotes and footers.

Text that was deleted with changes tracked is left out, and text that was inserted is in. Of the two forms that Word stores of some
drawings only the first is read.
"""

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import TextCollector
from mini_assistant.vector_stores.parsers.office_parts import OfficeParts

_NAMESPACES = ("http://schemas.openxmlformats.org/wordprocessingml/2006/main ", "http://purl.oclc.org/ooxml/wordprocessingml/main ")
_FALLBACK = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"
_MATH_TEXTS = {
    "http://schemas.openxmlformats.org/officeDocument/2006/math t",
    "http://purl.oclc.org/ooxml/officeDocument/math t",
}
_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_BEFORE = ("header",)
_AFTER = ("footnotes", "endnotes", "footer")


def parse_docx(path: str, characters_max: int) -> ParsedDocument:
    """The text of the document. Raises ParseFailed."""
    parts = OfficeParts(path, "Word")
    main = parts.main_part()
    related = parts.relationships(main)
    collector = TextCollector(characters_max)
    seen: set[str] = set()
    for kind in _BEFORE:
        _read_once(parts, [item.target for item in related if item.kind == kind], collector, seen)
    parts.read(main, WordEvents(collector))
    for kind in _AFTER:
        _read_once(parts, [item.target for item in related if item.kind == kind], collector, seen)
    return collector.document()


def _read_once(parts: OfficeParts, targets: list[str], collector: TextCollector, seen: set[str]) -> None:
    """Headers and footers of several sections are mostly the same; each text is told once."""
    for target in targets:
        if parts.has(target):
            parts.read(target, WordEvents(collector, seen))


class _Paragraph:
    __slots__ = ("has_number", "is_heading", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.has_number = False
        self.is_heading = False


class _Table:
    """A table that is being read. cells: of the row; blocks: of the cell."""

    __slots__ = ("blocks", "cells", "has_rows")

    def __init__(self) -> None:
        self.cells: list[list[str]] = []
        self.blocks: list[str] = []
        self.has_rows = False


class WordEvents:
    """Reads one part of a Word document. seen: paragraphs that are told once only; None when repetition is meant."""

    def __init__(self, collector: TextCollector, seen: set[str] | None = None) -> None:
        self._collector = collector
        self._seen = seen
        self._paragraphs: list[_Paragraph] = []
        self._tables: list[_Table] = []
        self._unseen_depth = 0
        self._is_text = False
        self._was_item = False
        self._locals = dict.fromkeys(_MATH_TEXTS, "t")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """As `XmlEvents`."""
        local = self._local(name)
        if self._unseen_depth or local in ("moveFrom", "pPrChange", "Fallback"):
            self._unseen_depth += 1
        elif local == "t":
            self._is_text = True
        elif local == "p":
            self._paragraphs.append(_Paragraph())
        elif local == "tbl":
            self._tables.append(_Table())
        elif self._tables and local == "tr":
            self._tables[-1].cells = []
        elif self._tables and local == "tc":
            self._tables[-1].blocks = []
        elif self._paragraphs:
            self._style(local, attributes)

    def end(self, name: str) -> None:
        """As `XmlEvents`."""
        if self._unseen_depth:
            self._unseen_depth -= 1
            return
        local = self._local(name)
        if local == "t":
            self._is_text = False
        elif local == "p" and self._paragraphs:
            self._end_paragraph(self._paragraphs.pop())
        elif local == "tc" and self._tables:
            self._tables[-1].cells.append(self._tables[-1].blocks)
        elif local == "tr" and self._tables:
            self._end_row(self._tables[-1])
        elif local == "tbl" and self._tables:
            self._tables.pop()

    def text(self, data: str) -> None:
        """As `XmlEvents`."""
        if self._is_text and self._paragraphs and not self._unseen_depth:
            self._paragraphs[-1].pieces.append(data)

    def _local(self, name: str) -> str:
        """The name within Word's namespaces; empty for what is not read."""
        local = self._locals.get(name)
        if local is None:
            space = next((space for space in _NAMESPACES if name.startswith(space)), None)
            local = "Fallback" if name == _FALLBACK else name.removeprefix(space) if space else ""
            if len(self._locals) < 1000:
                self._locals[name] = local
        return local

    def _style(self, local: str, attributes: dict[str, str]) -> None:
        """What stands in a paragraph beside its text."""
        paragraph = self._paragraphs[-1]
        if local in _BREAKS:
            paragraph.pieces.append(_BREAKS[local])
        elif local in ("numId", "pStyle", "outlineLvl"):
            value = next((attributes[space + "val"] for space in _NAMESPACES if space + "val" in attributes), "")
            if local == "numId":
                paragraph.has_number = value != "0"
            elif local == "pStyle" and value.startswith("List"):
                paragraph.has_number = True
            elif local == "outlineLvl" or value.startswith(("Heading", "Title")):
                paragraph.is_heading = True

    def _end_paragraph(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.pieces).strip()
        if not text:
            return
        is_item = paragraph.has_number and not paragraph.is_heading
        if is_item:
            text = f"- {text}"
        if self._tables:
            self._tables[-1].blocks.append(text)
        else:
            self._add(text, follows_closely=is_item and self._was_item)
            self._was_item = is_item

    def _end_row(self, table: _Table) -> None:
        # A table of one column is a frame around text.
        row = "\n".join(table.cells[0]) if len(table.cells) == 1 else " | ".join(" ".join(cell) for cell in table.cells)
        table.cells = []
        if not row.strip(" |"):
            return
        if len(self._tables) > 1:
            self._tables[-2].blocks.append(row)
        else:
            self._add(row, follows_closely=table.has_rows)
            self._was_item = False
        table.has_rows = True

    def _add(self, text: str, *, follows_closely: bool) -> None:
        if self._seen is not None:
            if text in self._seen:
                return
            self._seen.add(text)
        self._collector.add(text, follows_closely=follows_closely)
