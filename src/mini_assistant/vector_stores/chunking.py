"""Cuts the text of a document into passages by tokens, as the hosted API does. Pure; the ingest calls it outside the event loop.

A passage has at most so many tokens, the next one begins so many tokens before its end, and together they cover every character.
Where the end of a paragraph, a line or a sentence is near, a passage ends and begins there.
"""

import bisect
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice

from mini_assistant.models.tokens import Tokenizer, tokenizer
from mini_assistant.vector_stores.indexes.base import Passage
from mini_assistant.vector_stores.parsers.base import Page, ParsedDocument, ParseFailed

CHUNK_TOKENS_MIN = 4
"""A single character can take as many tokens, so no passage can be smaller."""

_TOO_LARGE = "The file could not be parsed because it is too large."

# Shares of a passage, and of the overlap, that may be given up for a better end and a better start.
_SNAP_SHARE = 8
# A run without a place to cut (base64, a script without spaces) is measured in parts when it takes more than this share of a passage.
_UNIT_SHARE = 8
_BYTES_PER_CHARACTER_MAX = 4
# A line with the empty lines after it: no word of the tokenizer reaches over its end, but for what _JOINED finds.
_LINES = re.compile(r"[\s\S][^\n]*(?:\n(?:\s*\n)?|\Z)")
_JOINED = re.compile(r"\n[/\r]")
# A longer line is measured word by word at once, others only where a passage begins or ends in them.
_LINE_CHARACTERS_MAX = 1000
# A text that is cut out of another has other words at its edges; so far from them they are the same.
_EDGE_CHARACTERS = 64
# The tokenizer does not let go of the interpreter, and takes 4 ms for as much.
_BLOCK_CHARACTERS = 128 * 1024
_WORDS_KNOWN_MAX = 200_000
_LINES_KNOWN_MAX = 64
_LINES_PER_STEP = 1000
# Ends of paragraphs, then of lines, then of sentences.
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile("[.!?\\u2026][\"'\\u201d\\u2019)\\]]*\\s|[\\u3002\\uff01\\uff1f]"))


def chunk_document(
    document: ParsedDocument, chunk_tokens_max: int, overlap_tokens: int, *, document_tokens_max: int | None = None
) -> list[Passage]:
    """The passages of a document, in order. Empty for an empty text. Raises ParseFailed for a document of too many tokens.

    chunk_tokens_max: at least CHUNK_TOKENS_MIN; no passage has more tokens, counted in o200k. overlap_tokens: what two neighbours share
    at most, as counted in the whole text; up to half of chunk_tokens_max. document_tokens_max: None for no limit.
    Source: behaviour §6; openapi-assistants.json, StaticChunkingStrategy.
    """
    chunk_tokens_max = max(CHUNK_TOKENS_MIN, chunk_tokens_max)
    ruler = _Ruler(document.text, max(1, chunk_tokens_max // _UNIT_SHARE), document_tokens_max)
    cutter = _Cutter(document.text, ruler, chunk_tokens_max, overlap_tokens)
    page_starts = [page.start for page in document.pages]
    return [_passage(document, start, end, page_starts) for start, end in cutter.spans()]


def _passage(document: ParsedDocument, start: int, end: int, page_starts: list[int]) -> Passage:
    text = document.text[start:end]
    return Passage(text, start, end, _page_or_none(document.pages, page_starts, start + len(text) - len(text.lstrip())))


def _page_or_none(pages: tuple[Page, ...], starts: list[int], place: int) -> int | None:
    """The page that the first visible character stands on."""
    return pages[max(0, bisect.bisect_right(starts, place) - 1)].number if pages else None


class _Cutter:
    """Finds where passages begin and end."""

    def __init__(self, text: str, ruler: "_Ruler", tokens_max: int, overlap_tokens: int) -> None:
        self._text = text
        self._ruler = ruler
        self._tokens_max = tokens_max
        self._overlap_tokens = max(0, min(overlap_tokens, tokens_max // 2))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and end of each passage, in code points."""
        start = end = 0
        while end < len(self._text):
            before, end = end, self._end(start)
            if end <= before:  # the overlap alone fills a passage; then there is none
                start, end = before, self._end(before)
            yield start, end
            start = max(start + 1, self._next_start(end))

    def _end(self, start: int) -> int:
        """Where the passage that begins at `start` ends: as far as it may, or at a better place shortly before."""
        tokens_before = self._ruler.tokens_before(start)
        end = self._largest_end(start, self._ruler.place_within(tokens_before + self._tokens_max))
        if end == len(self._text):
            return end
        floor = self._ruler.place_near(tokens_before + self._tokens_max - self._tokens_max // _SNAP_SHARE)
        for pattern in _ENDS:
            matches = list(pattern.finditer(self._text, max(start + 1, floor), end))
            if matches and self._ruler.count(start, matches[-1].end()) <= self._tokens_max:
                return matches[-1].end()
        return end

    def _largest_end(self, start: int, end: int) -> int:
        """The place, or one before it. Cut out of its text, a passage can have other tokens at its edges than within."""
        while end > start + 1:
            excess = self._ruler.count(start, end) - self._tokens_max
            if excess <= 0:
                return end
            tokens, cut = self._ruler.tokens_before(end) - excess, end
            # Where a line as a whole has other tokens than its units, a place may be told again for fewer tokens.
            while cut >= end:
                cut, tokens = self._ruler.place_within(tokens), tokens - 1
            end = cut
        return start + 1

    def _next_start(self, end: int) -> int:
        """Where the passage after one that ends at `end` begins: within it by the overlap, or at a better place shortly after."""
        if self._overlap_tokens == 0:
            return end
        target = self._ruler.tokens_before(end) - self._overlap_tokens
        start = self._ruler.place_from(target)
        ceiling = min(end, self._ruler.place_near(target + self._overlap_tokens // _SNAP_SHARE))
        for pattern in _ENDS:
            match = pattern.search(self._text, start, max(start, ceiling))
            if match:
                return match.end()
        return start


class _Ruler:
    """Tells tokens from places in a text, and places from tokens. Places are in code points.

    A text may be cut after each unit: a word, a number, or a part of a longer run. Lines are measured first, their units when needed.
    """

    def __init__(self, text: str, unit_tokens_max: int, text_tokens_max: int | None) -> None:
        """Raises ParseFailed when the text has more than `text_tokens_max`."""
        self._text = text
        self._tokenizer = tokenizer()
        self._counts = _TokenCounts(self._tokenizer)
        self._unit_tokens_max = unit_tokens_max
        self._has_parts = False
        # Where each line ends, or each unit of a long one, and the tokens up to there. Both begin with 0.
        self._ends, self._tokens = array("q", [0]), array("q", [0])
        self._measure(text_tokens_max)
        # Those of the units of a line, by the number of the line.
        self._lines: dict[int, tuple[list[int], list[int]]] = {}

    def tokens_before(self, place: int) -> int:
        """Tokens up to the last unit that ends at the place or before it."""
        line = bisect.bisect_right(self._ends, place) - 1
        if self._ends[line] == place:
            return self._tokens[line]
        ends, tokens = self._units_of(line)
        return tokens[bisect.bisect_right(ends, place) - 1]

    def place_within(self, tokens: int) -> int:
        """The end of the last unit up to which the text has at most so many tokens."""
        line = max(0, bisect.bisect_right(self._tokens, tokens) - 1)
        if self._tokens[line] == tokens or line == len(self._ends) - 1:
            return self._ends[line]
        ends, counted = self._units_of(line)
        return ends[max(0, bisect.bisect_right(counted, tokens) - 1)]

    def place_near(self, tokens: int) -> int:
        """As `place_within`, but in a line as if all its tokens were of the same length."""
        line = max(0, bisect.bisect_right(self._tokens, tokens) - 1)
        place, before = self._ends[line], self._tokens[line]
        if before == tokens or line == len(self._ends) - 1:
            return place
        return place + (self._ends[line + 1] - place) * (tokens - before) // (self._tokens[line + 1] - before)

    def place_from(self, tokens: int) -> int:
        """The end of the first unit up to which the text has at least so many tokens; at most all that the text has."""
        line = bisect.bisect_left(self._tokens, tokens)
        if line == 0 or self._tokens[line] == tokens:
            return self._ends[line]
        ends, counted = self._units_of(line - 1)
        return ends[bisect.bisect_left(counted, tokens)]

    def count(self, start: int, end: int) -> int:
        """Tokens of what is between two places, cut out of the text."""
        first = bisect.bisect_left(self._ends, start + _EDGE_CHARACTERS)
        last = bisect.bisect_right(self._ends, end - _EDGE_CHARACTERS) - 1
        if first >= last or self._has_parts or _JOINED.search(self._text, start, end):
            return self._tokenizer.count(self._text[start:end])
        edges = self._tokenizer.count(self._text[start : self._ends[first]]) + self._tokenizer.count(self._text[self._ends[last] : end])
        return edges + self._tokens[last] - self._tokens[first]

    def _measure(self, tokens_max: int | None) -> None:
        matches = _LINES.finditer(self._text)
        while lines := [match[0] for match in islice(matches, _LINES_PER_STEP)]:
            self._add(lines)
            if tokens_max is not None and self._tokens[-1] > tokens_max:
                raise ParseFailed("invalid_file", _TOO_LARGE)

    def _add(self, lines: list[str]) -> None:
        if max(map(len, lines)) <= _LINE_CHARACTERS_MAX:
            self._append(map(len, lines), map(self._tokenizer.count, lines))
            return
        for line in lines:
            for start in range(0, len(line), _BLOCK_CHARACTERS):
                units = self._units(line[start : start + _BLOCK_CHARACTERS]) if len(line) > _LINE_CHARACTERS_MAX else [line]
                self._append(map(len, units), map(self._counts.__getitem__, units))

    def _append(self, lengths: Iterable[int], counts: Iterable[int]) -> None:
        self._ends.extend(islice(accumulate(lengths, initial=self._ends[-1]), 1, None))
        self._tokens.extend(islice(accumulate(counts, initial=self._tokens[-1]), 1, None))

    def _units_of(self, line: int) -> tuple[list[int], list[int]]:
        """Where the units of a line end, and the tokens up to there. Both begin with what is before the line."""
        if line not in self._lines:
            if len(self._lines) >= _LINES_KNOWN_MAX:
                self._lines.clear()
            (start, end), (before, limit) = self._ends[line : line + 2], self._tokens[line : line + 2]
            text = self._text[start:end]
            units = self._tokenizer.pretokenize(text) if limit - before <= self._unit_tokens_max else self._units(text)
            tokens = list(accumulate(map(self._counts.__getitem__, units), initial=before))
            if tokens[-1] > limit:  # the parts of a run can have more tokens than the run
                tokens = [min(count, limit) for count in tokens]
            self._lines[line] = list(accumulate(map(len, units), initial=start)), tokens
        return self._lines[line]

    def _units(self, text: str) -> list[str]:
        """The words of a text, those of many tokens in parts."""
        if len(self._counts) > _WORDS_KNOWN_MAX:
            self._counts.clear()
        words = self._tokenizer.pretokenize(text)
        large = {word for word in set(words) if self._counts[word] > self._unit_tokens_max}
        if not large:
            return words
        self._has_parts = True
        size = max(1, self._unit_tokens_max // _BYTES_PER_CHARACTER_MAX)
        units: list[str] = []
        for word in words:
            if word in large:
                units.extend(word[place : place + size] for place in range(0, len(word), size))
            else:
                units.append(word)
        return units


class _TokenCounts(dict[str, int]):
    """Tokens of each word; most of them come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> int:
        count = self[word] = self._tokenizer.count(word)
        return count
