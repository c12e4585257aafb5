"""Presentations (PPTX): text boxes, tables and notes of each slide, with the slides kept as pages.

Slide numbers, dates and footers, which are the same on every slide, are left out.
"""

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import TextCollector
from mini_assistant.vector_stores.parsers.office_parts import OfficeParts

_DRAWING = ("http://schemas.openxmlformats.org/drawingml/2006/main ", "http://purl.oclc.org/ooxml/drawingml/main ")
_SLIDES = ("http://schemas.openxmlformats.org/presentationml/2006/main ", "http://purl.oclc.org/ooxml/presentationml/main ")
_LINKS = (
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships id",
    "http://purl.oclc.org/ooxml/officeDocument/relationships id",
)
_FALLBACK = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"
_REPEATED = {"sldNum", "dt", "ftr", "hdr", "sldImg"}


def parse_pptx(path: str, characters_max: int) -> ParsedDocument:
    """The text of all slides in the order in which they are shown. Raises ParseFailed."""
    parts = OfficeParts(path, "PowerPoint")
    main = parts.main_part()
    order = _SlideOrder()
    parts.read(main, order)
    targets = {item.id: item.target for item in parts.relationships(main) if item.kind == "slide"}
    collector = TextCollector(characters_max)
    for number, link in enumerate(order.links, start=1):
        target = targets.get(link)
        if target is None or not parts.has(target):
            continue
        parts.read(target, SlideEvents(collector, _REPEATED))
        for item in parts.relationships(target):
            if item.kind == "notesSlide" and parts.has(item.target):
                parts.read(item.target, SlideEvents(collector, _REPEATED))
        collector.end_page(number)
    return collector.document()


class _SlideOrder:
    """Reads the presentation itself: which slides it has."""

    def __init__(self) -> None:
        self.links: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name.startswith(_SLIDES) and name.endswith(" sldId"):
            self.links += [attributes[link] for link in _LINKS if link in attributes]

    def end(self, name: str) -> None:
        pass

    def text(self, data: str) -> None:
        pass


class SlideEvents:
    """Reads a slide or its notes. A shape is a block, and its paragraphs are lines of it; so are the rows of a table."""

    def __init__(self, collector: TextCollector, placeholders_unread: set[str]) -> None:
        self._collector = collector
        self._placeholders_unread = placeholders_unread
        self._unseen_depth = 0
        self._is_text = False
        self._is_unread = False
        self._line: list[str] = []
        self._lines: list[str] = []
        self._cells: list[str] | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """As `XmlEvents`."""
        if self._unseen_depth or name == _FALLBACK:
            self._unseen_depth += 1
        elif name.startswith(_DRAWING):
            self._start_text(name.rpartition(" ")[2], attributes)
        elif name.startswith(_SLIDES):
            local = name.rpartition(" ")[2]
            if local in ("sp", "graphicFrame"):
                self._end_shape()
            elif local == "ph":
                self._is_unread = attributes.get("type") in self._placeholders_unread

    def end(self, name: str) -> None:
        """As `XmlEvents`."""
        if self._unseen_depth:
            self._unseen_depth -= 1
        elif name.startswith(_DRAWING):
            self._end_text(name.rpartition(" ")[2])
        elif name.startswith(_SLIDES) and name.rpartition(" ")[2] in ("sp", "graphicFrame", "cSld"):
            self._end_shape()

    def text(self, data: str) -> None:
        """As `XmlEvents`."""
        if self._is_text and not self._unseen_depth:
            self._line.append(data)

    def _start_text(self, local: str, attributes: dict[str, str]) -> None:
        match local:
            case "t":
                self._is_text = True
            case "br":
                self._line.append("\n")
            case "tr":
                self._cells = []
                self._line = []
            case "fld" if attributes.get("type", "").startswith(("slidenum", "datetime")):
                self._unseen_depth = 1
            case _:
                pass

    def _end_text(self, local: str) -> None:
        match local:
            case "t":
                self._is_text = False
            case "p" if self._cells is None:
                self._lines.append("".join(self._line))
                self._line = []
            case "p":
                self._line.append(" ")
            case "tc" if self._cells is not None:
                self._cells.append(" ".join("".join(self._line).split()))
                self._line = []
            case "tr" if self._cells is not None:
                self._lines.append(" | ".join(self._cells) if any(self._cells) else "")
                self._cells = None
            case _:
                pass

    def _end_shape(self) -> None:
        text = "\n".join(line for line in self._lines if line.strip())
        if text and not self._is_unread:
            self._collector.add(text)
        self._lines = []
        self._is_unread = False
