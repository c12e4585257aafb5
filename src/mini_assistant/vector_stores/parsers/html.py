"""HTML, by the standard library: the text as a reader of the page sees it, without scripts and styles."""

import re
from html.parser import HTMLParser

from mini_assistant.vector_stores.parsers.base import ParsedDocument
from mini_assistant.vector_stores.parsers.document_text import TextCollector
from mini_assistant.vector_stores.parsers.text import decoded, read_bounded

# Markup is longer than the text in it.
_MARKUP_FACTOR = 8
_HEAD_BYTES = 2048
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
# Others of Python's codecs are no encodings of text, or slow on purpose-made input.
_CHARSETS_KNOWN = re.compile(
    r"iso-8859-([1-9]|1[013-6])|windows-125[0-8]|koi8-[ru]|shift_jis|euc-jp|euc-kr|gbk|gb2312|gb18030|big5|iso-2022-jp", re.IGNORECASE
)

_UNSEEN = {"script", "style", "template", "noscript", "svg", "math", "iframe", "object", "audio", "video", "canvas"}
_BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div", "dl", "dt", "fieldset"),
    *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hgroup", "hr", "html", "legend"),
    *("li", "main", "menu", "nav", "ol", "option", "p", "pre", "section", "select", "summary", "table", "tbody", "tfoot", "thead"),
    *("title", "tr", "ul"),
}
_CELLS = {"td", "th"}
_ROW_ENDS = {"tr", "table", "tbody", "thead", "tfoot", "pre"}
# Blocks of which several in a row stand on lines of their own, without an empty line between: a list, a table, a list of terms.
_CLOSE = {"li": "ul", "option": "ul", "tr": "table", "dt": "dl", "dd": "dl"}
_SPACES = re.compile(r"[ \t\n\r\f]+")
_SPACES_AT_LINE_ENDS = re.compile(r" *\n *")
# How a line break, and the end of a cell, are told from the white space of the markup until the block ends.
_LINE_END = "\v"
_CELL_END = "\x1f"
_CELL_ENDS = re.compile(rf"\s*{_CELL_END}\s*")
_LINES_IN_ROW = re.compile(r"\n{2,}")


def parse_html(path: str, characters_max: int) -> ParsedDocument:
    """The text of a page: its title, then its blocks. Raises ParseFailed."""
    page = _PageReader(TextCollector(characters_max))
    page.feed(_decoded(read_bounded(path, characters_max * _MARKUP_FACTOR)))
    page.close()
    page.end_block()
    return page.collector.document()


def _decoded(content: bytes) -> str:
    """The markup; what the page says of its encoding matters only when it is not UTF-8."""
    declared = _CHARSET.search(content, 0, _HEAD_BYTES)
    if declared is None or not _CHARSETS_KNOWN.fullmatch(declared[1].decode()):
        return decoded(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode(declared[1].decode(), "replace")


class _PageReader(HTMLParser):
    """Collects blocks. Nothing in it nests, so the depth of the page does not matter."""

    def __init__(self, collector: TextCollector) -> None:
        super().__init__(convert_charrefs=True)
        self.collector = collector
        self._parts: list[str] = []
        self._unseen = ""
        self._unseen_depth = 0
        self._preformatted_depth = 0
        self._block = ""
        self._block_before = ""
        self._has_cell = False
        self._title = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unseen:
            self._unseen_depth += tag == self._unseen
        elif tag in _UNSEEN:
            self._unseen, self._unseen_depth = tag, 1
        elif tag == "br":
            self._parts.append(_LINE_END)
        elif tag == "img":
            self._parts.append(f" {dict(attrs).get('alt') or ''} ")
        elif tag in _CELLS:
            self._start_cell()
        elif tag in _BLOCKS:
            self._start_block(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            self._unseen_depth -= tag == self._unseen
            if self._unseen_depth == 0:
                self._unseen = ""
        elif tag in _BLOCKS:
            if not self._is_line_of_cell(tag):
                self.end_block()
            if tag == "pre":
                self._preformatted_depth = max(0, self._preformatted_depth - 1)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self._parts.append(data.replace("\n", _LINE_END) if self._preformatted_depth else data)

    def end_block(self) -> bool:
        """What was read since the last block is one. Returns whether there was anything."""
        block, self._block = self._block, ""
        text = self._text_of_block()
        if not text or text.isspace():
            return False
        if block == "title":
            self._title = text
        elif text == self._title:
            self._title = ""
            return True  # most pages repeat their title as a heading
        is_close = block in _CLOSE and _CLOSE[block] == _CLOSE.get(self._block_before)
        self.collector.add(f"- {text}" if block == "li" else text, follows_closely=is_close)
        self._block_before = block
        return True

    def _text_of_block(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        has_cell, self._has_cell = self._has_cell, False
        if self._preformatted_depth:
            return text.replace(_LINE_END, "\n").replace(_CELL_END, " | ")
        text = _SPACES_AT_LINE_ENDS.sub("\n", _SPACES.sub(" ", text).replace(_LINE_END, "\n")).strip()
        return _CELL_ENDS.sub(" | ", _LINES_IN_ROW.sub("\n", text)) if has_cell else text

    def _start_block(self, tag: str) -> None:
        if self._is_line_of_cell(tag):
            return
        before = self._block
        had_text = self.end_block()
        # The first paragraph in an item is the item.
        self._block = before if before == "li" and not had_text and tag in ("p", "div") else tag
        if tag == "pre":
            self._preformatted_depth += 1

    def _is_line_of_cell(self, tag: str) -> bool:
        """A row of a table stays one block, whatever is in its cells."""
        if not self._has_cell or tag in _ROW_ENDS:
            return False
        self._parts.append(_LINE_END)
        return True

    def _start_cell(self) -> None:
        if self._has_cell:
            self._parts.append(_CELL_END)
        self._has_cell = True
