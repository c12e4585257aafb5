"""Cuts the text of a document into passages by tokens, as the hosted API does. Pure; the ingest calls it outside the event loop.

A passage has at most so many tokens, the next one begins so many tokens before its end, and together they cover every character.
Where the end of a paragraph, a line or a sentence is near, a passage ends and begins there.
"""

import bisect
import re
from collections.abc import Iterator

import numpy as np

from mini_assistant.models.tokens import Tokenizer, tokenizer
from mini_assistant.vector_stores.indexes.base import Passage
from mini_assistant.vector_stores.parsers.base import Page, ParsedDocument

CHUNK_TOKENS_MIN = 4
"""A single character can take as many tokens, so no passage can be smaller."""

# Shares of a passage, and of the overlap, that may be given up for a better end and a better start.
_SNAP_SHARE = 8
# A run without a place to cut (base64, a script without spaces) is measured in parts when it takes more than this share of a passage.
_UNIT_SHARE = 8
_BYTES_PER_CHARACTER_MAX = 4
# The tokenizer does not let go of the interpreter, and takes 4 ms for as much.
_BLOCK_CHARACTERS = 128 * 1024
_WORDS_KNOWN_MAX = 200_000
# Ends of paragraphs, then of lines, then of sentences.
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile("[.!?\\u2026][\"'\\u201d\\u2019)\\]]*\\s|[\\u3002\\uff01\\uff1f]"))


def chunk_document(document: ParsedDocument, chunk_tokens_max: int, overlap_tokens: int) -> list[Passage]:
    """The passages of a document, in order. Empty for an empty text.

    chunk_tokens_max: at least CHUNK_TOKENS_MIN; no passage has more tokens, counted in o200k. overlap_tokens: what two neighbours share
    at most, as counted in the whole text; up to half of chunk_tokens_max.
    Source: behaviour §6; openapi-assistants.json, StaticChunkingStrategy.
    """
    cutter = _Cutter(document.text, max(CHUNK_TOKENS_MIN, chunk_tokens_max), overlap_tokens)
    page_starts = [page.start for page in document.pages]
    return [_passage(document, start, end, page_starts) for start, end in cutter.spans()]


def _passage(document: ParsedDocument, start: int, end: int, page_starts: list[int]) -> Passage:
    text = document.text[start:end]
    return Passage(text, start, end, _page_or_none(document.pages, page_starts, start + len(text) - len(text.lstrip())))


def _page_or_none(pages: tuple[Page, ...], starts: list[int], place: int) -> int | None:
    """The page that the first visible character stands on."""
    return pages[max(0, bisect.bisect_right(starts, place) - 1)].number if pages else None


class _Cutter:
    """Walks over a text. It may be cut after each unit: a word, a number, or a part of a longer run."""

    def __init__(self, text: str, tokens_max: int, overlap_tokens: int) -> None:
        self._text = text
        self._tokenizer = tokenizer()
        self._tokens_max = tokens_max
        self._overlap_tokens = max(0, min(overlap_tokens, tokens_max // 2))
        # Where each unit ends, in code points, and the tokens up to there. Both begin with 0.
        self._ends, self._tokens = _measured(text, self._tokenizer, max(1, tokens_max // _UNIT_SHARE))

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
        tokens_before = self._tokens_before(start)
        end = self._largest_end(start, self._unit_within(tokens_before + self._tokens_max))
        if end == len(self._text):
            return end
        floor = self._place_within(tokens_before + self._tokens_max - self._tokens_max // _SNAP_SHARE)
        for pattern in _ENDS:
            matches = list(pattern.finditer(self._text, max(start + 1, floor), end))
            if matches and self._fits(start, matches[-1].end()):
                return matches[-1].end()
        return end

    def _largest_end(self, start: int, unit: int) -> int:
        """The end of the unit, or of one before it. Cut out of its text, a passage can have other tokens at its edges than within."""
        while (end := int(self._ends[unit])) > start + 1:
            excess = self._tokenizer.count(self._text[start:end]) - self._tokens_max
            if excess <= 0:
                return end
            unit = min(unit - 1, self._unit_within(int(self._tokens[unit]) - excess))
        return start + 1

    def _next_start(self, end: int) -> int:
        """Where the passage after one that ends at `end` begins: within it by the overlap, or at a better place shortly after."""
        if self._overlap_tokens == 0:
            return end
        target = self._tokens_before(end) - self._overlap_tokens
        start = int(self._ends[np.searchsorted(self._tokens, target)])
        ceiling = self._place_within(target + self._overlap_tokens // _SNAP_SHARE)
        for pattern in _ENDS:
            match = pattern.search(self._text, start, max(start, ceiling))
            if match:
                return match.end()
        return start

    def _fits(self, start: int, end: int) -> bool:
        return self._tokenizer.count(self._text[start:end]) <= self._tokens_max

    def _tokens_before(self, place: int) -> int:
        return int(self._tokens[np.searchsorted(self._ends, place, side="right") - 1])

    def _unit_within(self, tokens: int) -> int:
        """The last unit up to which the text has at most so many tokens."""
        return max(0, int(np.searchsorted(self._tokens, tokens, side="right")) - 1)

    def _place_within(self, tokens: int) -> int:
        return int(self._ends[self._unit_within(tokens)])


def _measured(text: str, tokenizer: Tokenizer, unit_tokens_max: int) -> tuple[np.ndarray, np.ndarray]:
    lengths: list[np.ndarray] = [np.zeros(1, np.int64)]
    tokens: list[np.ndarray] = [np.zeros(1, np.int64)]
    counts = _TokenCounts(tokenizer)
    for block in _blocks(text):
        if len(counts) > _WORDS_KNOWN_MAX:
            counts.clear()
        units = _units(tokenizer.pretokenize(block), counts, unit_tokens_max)
        lengths.append(np.fromiter(map(len, units), np.int64, len(units)))
        tokens.append(np.fromiter(map(counts.__getitem__, units), np.int64, len(units)))
    return np.cumsum(np.concatenate(lengths)), np.cumsum(np.concatenate(tokens))


class _TokenCounts(dict[str, int]):
    """Tokens of each word; most of them come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> int:
        count = self[word] = self._tokenizer.count(word)
        return count


def _blocks(text: str) -> Iterator[str]:
    """The text in parts that are measured one by one, so that its words do not all lie in memory at once."""
    start = 0
    while start < len(text):
        end = start + _BLOCK_CHARACTERS
        if end < len(text):
            line_end = text.rfind("\n", start, end) + 1
            end = line_end if line_end > start else end
        yield text[start:end]
        start = end


def _units(words: list[str], counts: _TokenCounts, tokens_max: int) -> list[str]:
    """The words, those of more tokens in parts."""
    large = {word for word in set(words) if counts[word] > tokens_max}
    if not large:
        return words
    size = max(1, tokens_max // _BYTES_PER_CHARACTER_MAX)
    units: list[str] = []
    for word in words:
        if word in large:
            units.extend(word[place : place + size] for place in range(0, len(word), size))
        else:
            units.append(word)
    return units
