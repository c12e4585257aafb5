"""How long a document takes in the processes that parse, beside the library that reads it when it is called without them."""

import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pypdfium2

from bench.report import Row, at_least, information, median
from bench.scale import Scale
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.chunking import chunk_document
from mini_assistant.vector_stores.parsers.base import DocumentParser
from mini_assistant.vector_stores.parsers.process import ParserProcesses
from tests.documents import pdf_document

TARGET = 0.8
_CHUNK_TOKENS, _OVERLAP_TOKENS = 800, 400
_PAGES_PER_REPETITION = 2.5
_LINE = "Item {number} of page {page} was measured again, and its value of {value} is within the limits that were agreed on."
_LINES_PER_PAGE = 40


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Text of a large PDF a second; the start of the processes; and passages of its text."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        large.write_bytes(_large_pdf(int(scale.repetitions * _PAGES_PER_REPETITION)))
        small.write_bytes(b"A line of text.")
        colds: list[float] = []
        ratios: list[float] = []
        per_second: list[float] = []
        bounds: list[float] = []
        warms: list[float] = []
        for _ in range(scale.rounds):
            parser = ParserProcesses(Settings())
            colds.append(await _seconds(parser, small, "small.txt"))
            warms += [await _seconds(parser, small, "small.txt") for _ in range(10)]
            seconds, bound = await _seconds(parser, large, "large.pdf"), _seconds_of_library(large)
            ratios.append(bound / seconds)
            per_second.append(large.stat().st_size / seconds / 1e6)
            bounds.append(large.stat().st_size / bound / 1e6)
            document = await parser.parse(str(large), "large.pdf")
            await parser.close()
        measured = f"{median(per_second):.1f} MB/s"
        yield at_least("parse a large PDF", median(ratios), TARGET, measured=measured, bound=f"{median(bounds):.1f} MB/s, PDFium alone")
        yield information("parse a small file, first / next", f"{median(colds) * 1000:.0f} / {median(warms) * 1000:.1f} ms")
        began = time.process_time()
        passages = chunk_document(document, _CHUNK_TOKENS, _OVERLAP_TOKENS)
        seconds = time.process_time() - began
        size = len(document.text.encode()) / 1e6
        yield information("cut its text into passages", f"{size / seconds:.1f} MB/CPU s", f"{len(passages)} of {_CHUNK_TOKENS} tokens")


def _large_pdf(page_count: int) -> bytes:
    return pdf_document(
        [
            "\n".join(_LINE.format(number=number, page=page, value=(number * 7919 + page) % 1000) for number in range(_LINES_PER_PAGE))
            for page in range(page_count)
        ]
    )


async def _seconds(parser: DocumentParser, path: Path, filename: str) -> float:
    began = time.perf_counter()
    await parser.parse(str(path), filename)
    return time.perf_counter() - began


def _seconds_of_library(path: Path) -> float:
    began = time.perf_counter()
    with pypdfium2.PdfDocument(path) as document:
        for place in range(len(document)):
            page = document[place]
            text_page = page.get_textpage()
            text_page.get_text_bounded()
            text_page.close()
            page.close()
    return time.perf_counter() - began
