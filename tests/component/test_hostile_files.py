"""Files that were made to hurt: each ends in text or in a refusal, in bounded time and memory, and the next file is parsed as ever."""

import asyncio
import io
import random
import sys
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from mini_assistant.settings import Settings
from mini_assistant.vector_stores.parsers.base import ParsedDocument, ParseFailed
from mini_assistant.vector_stores.parsers.process import ParserProcesses
from tests.documents import doc_document, docx_document, html_document, pdf_document, pdf_file, pdf_stream, pptx_document

MIB = 1024 * 1024
SETTINGS = Settings(parse_timeout_seconds=10.0, parse_memory_bytes_max=256 * MIB, file_tokens_max=1_000_000, ingest_concurrency_max=1)
TOO_LARGE = ("invalid_file", "The file could not be parsed because it is too large.")
Answer = Callable[[str, bytes], Awaitable[ParsedDocument | tuple[str, str]]]


@pytest.fixture
async def answer(tmp_path: Path) -> AsyncIterator[Answer]:
    """Parses a file, and gives its text or its refusal. In the end an honest file must still be parsed, and no process be left."""
    others = psutil.Process().children()  # servers that the tests of this process share
    parser = ParserProcesses(SETTINGS)

    async def parse(filename: str, content: bytes) -> ParsedDocument | tuple[str, str]:
        path = tmp_path / "blob"
        path.write_bytes(content)
        try:
            return await parser.parse(str(path), filename)
        except ParseFailed as exc:
            return exc.code, exc.message

    yield parse
    assert await parse("a.pdf", pdf_document(["honest"])) != TOO_LARGE
    assert await parse("a.txt", b"honest") == ParsedDocument(text="honest")
    await parser.close()
    assert not set(psutil.Process().children()) - set(others)


# ---- archives ----------------------------------------------------------------------------------------------------------------------

WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'
PARAGRAPH = "<w:p><w:r><w:t>{}</w:t></w:r></w:p>"


def docx_with(parts: dict[str, str | bytes]) -> bytes:
    """A Word document some of whose parts are others."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx_document(["x"]))) as real, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in real.namelist():
            archive.writestr(name, parts.pop(name, real.read(name)))
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def docx_of(body: str) -> bytes:
    return docx_with({"word/document.xml": WORD.format(body)})


async def test_a_part_that_unpacks_to_far_more_is_not_unpacked(answer: Answer) -> None:
    assert await answer("a.docx", docx_with({"word/document.xml": bytes(100 * MIB)})) == TOO_LARGE


async def test_a_part_that_lies_about_its_size_is_read_no_further(answer: Answer) -> None:
    content = bytearray(docx_of(PARAGRAPH.format("a" * 3_000_000)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.getinfo("word/document.xml").file_size
    entry = content.rindex(b"word/document.xml") - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    assert int.from_bytes(content[entry + 24 : entry + 28], "little") == size
    content[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")

    assert await answer("a.docx", bytes(content)) == ("invalid_file", "The file could not be parsed. It is not a valid Word document.")


async def test_an_archive_of_very_many_files_is_refused(answer: Answer) -> None:
    assert await answer("a.docx", docx_with({f"x{number}": b"" for number in range(25_000)})) == TOO_LARGE


async def test_large_things_that_are_no_text_do_not_matter(answer: Answer) -> None:
    assert await answer("a.docx", docx_with({"word/media/image.png": bytes(100 * MIB)})) == ParsedDocument(text="x")


async def test_a_part_that_is_encrypted_is_said_to_be(answer: Answer) -> None:
    content = bytearray(docx_document(["x"]))
    content[content.rindex(b"word/document.xml") - 46 + 8] |= 1

    assert await answer("a.docx", bytes(content)) == ("invalid_file", "The file could not be parsed. It is protected by a password.")


async def test_parts_outside_of_the_archive_are_not_looked_for(answer: Answer) -> None:
    relationships = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="r1" Type="x/officeDocument" Target="../../../../etc/passwd"/></Relationships>'
    )

    assert await answer("a.docx", docx_with({"_rels/.rels": relationships})) == (
        "invalid_file",
        "The file could not be parsed. It is not a valid Word document.",
    )


# ---- XML ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY e "text">',
        "".join(f'<!ENTITY e{place} "{f"&e{place + 1};" * 10}">' for place in range(12)) + '<!ENTITY e12 "lol"><!ENTITY e "&e0;">',
        '<!ENTITY e SYSTEM "file:///etc/passwd">',
        '<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p; <!ENTITY e "x">',
    ],
    ids=["entity", "billion-laughs", "external-file", "external-address"],
)
@pytest.mark.parametrize("part", ["word/document.xml", "_rels/.rels"])
async def test_xml_that_defines_entities_is_refused(answer: Answer, declaration: str, part: str) -> None:
    content = f"<!DOCTYPE x [{declaration}]>" + WORD.format(PARAGRAPH.format("&e;"))

    assert await answer("a.docx", docx_with({part: content})) == (
        "invalid_file",
        "The file could not be parsed. It is not a valid Word document.",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [("<w:p>", "</w:p>"), ("<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>"), ("<w:sdt>", "</w:sdt>"), ("<w:moveFrom/><w:ins>", "</w:ins>")],
)
async def test_xml_may_be_nested_deeply(answer: Answer, before: str, after: str) -> None:
    assert await answer("a.docx", docx_of(before * 100_000 + PARAGRAPH.format("deep") + after * 100_000)) == ParsedDocument(text="deep")


@pytest.mark.parametrize("body", ["<w:p>" * 100_000, "</w:p>", "<w:p>\0</w:p>", "<w:p>&nosuch;</w:p>", "<x:p/>", "<w:p a='1' a='2'/>"])
async def test_xml_that_is_not_well_formed_is_refused(answer: Answer, body: str) -> None:
    assert await answer("a.docx", docx_of(body)) == ("invalid_file", "The file could not be parsed. It is not a valid Word document.")


async def test_a_text_that_grows_beyond_the_limit_is_refused(answer: Answer) -> None:
    assert await answer("a.docx", docx_of(PARAGRAPH.format("word " * 1000) * 4000)) == TOO_LARGE


# ---- HTML and text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"<div>" * 300_000 + b"x",
        b"<table><tr><td>" * 100_000 + b"x",
        b"<svg>" * 300_000 + b"x",
        b"<" * 100_000,
        b"&" * 1_000_000,
        b"<!--" * 1000,
        b"<a " * 1000,
        b"<p>" + b"<br>" * 200_000,
        b"<table><tr><td>" + b"<br>" * 200_000,
        b"<p>" + b" \n" * 500_000 + b"x",
        b"<p>a" + b"&#32;\x0b" * 200_000 + b"b",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]>&a;",
        b"<![CDATA[" * 1000,
    ],
)
async def test_strange_html_is_read_in_linear_time(answer: Answer, content: bytes) -> None:
    await answer("a.txt", b"warm")
    began = time.monotonic()
    await answer("a.html", content)

    assert time.monotonic() - began < 8


async def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    others = psutil.Process().children()
    parser = ParserProcesses(Settings(parse_timeout_seconds=1.0))
    path = tmp_path / "blob"
    path.write_bytes(b"<p>x" * 3_000_000)
    began = time.monotonic()
    with pytest.raises(ParseFailed) as caught:
        await parser.parse(str(path), "a.html")
    assert time.monotonic() - began < 10
    assert (caught.value.code, caught.value.message) == (
        "invalid_file",
        "The file could not be parsed. It took longer than 1 seconds.",
    )
    await parser.close()
    assert not set(psutil.Process().children()) - set(others)


@pytest.mark.parametrize("content", [b"[" * 300_000, b'{"a":' * 100_000, b"\\" * 300_000])
async def test_deep_json_is_only_text(answer: Answer, content: bytes) -> None:
    assert await answer("a.json", content) == ParsedDocument(text=content.decode())


async def test_texts_may_have_as_many_tokens_as_the_limit_says_and_no_more(answer: Answer) -> None:
    assert await answer("a.txt", b" a" * 1_000_000) == ParsedDocument(text=" a" * 1_000_000)
    assert await answer("a.txt", b" a" * 1_000_001) == TOO_LARGE


async def test_a_file_that_cannot_be_within_the_limit_is_not_read(answer: Answer, tmp_path: Path) -> None:
    assert await answer("a.txt", b" " * (16 * 4 * 1_000_000 + 1)) == TOO_LARGE


# ---- PDF ---------------------------------------------------------------------------------------------------------------------------

CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
PAGE = (
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 500 500] "
    b"/Resources << /Font << /F1 5 0 R >> /XObject << /X 10 0 R >> >> /Contents 4 0 R >>"
)
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def one_page(content: tuple[bytes, bytes], forms: dict[int, tuple[bytes, bytes]] | None = None) -> bytes:
    filling = dict.fromkeys(range(6, 10), b"null")
    page = {1: CATALOG, 2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", 3: PAGE, 4: content, 5: FONT}
    return pdf_file({**page, **filling, **(forms or {10: form(11, b"")})})


def form(next_number: int, content: bytes) -> tuple[bytes, bytes]:
    resources = b"/XObject << /X %d 0 R >> /Font << /F1 5 0 R >>" % next_number
    return b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << %s >> /Length %d >>" % (resources, len(content)), content


def packed_twice(content: bytes) -> tuple[bytes, bytes]:
    packed = zlib.compress(zlib.compress(content))
    return b"<< /Filter [/FlateDecode /FlateDecode] /Length %d >>" % len(packed), packed


HOSTILE_PDFS = {
    "page-tree-in-a-circle": pdf_file({1: CATALOG, 2: b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 100000 >>"}),
    "two-billion-pages": pdf_file({1: CATALOG, 2: b"<< /Type /Pages /Kids [] /Count 2147483647 >>"}),
    "form-in-itself": one_page(pdf_stream(b"/X Do " * 100), {10: form(10, b"/X Do /X Do /X Do")}),
    "forms-that-multiply": one_page(
        pdf_stream(b"/X Do"),
        {place: form(place + 1, b"/X Do " * 10 if place < 22 else b"BT /F1 9 Tf (x) Tj ET") for place in range(10, 23)},
    ),
    "stream-that-unpacks-to-far-more": one_page(packed_twice(b"BT /F1 1 Tf (hello) Tj ET " * 8_000_000)),
    "endless-numbers": one_page(pdf_stream(b"9" * 3_000_000 + b" Tf")),
    "deep-arrays": one_page(pdf_stream(b"[" * 2_000_000)),
}


@pytest.mark.parametrize("name", HOSTILE_PDFS)
async def test_a_hostile_pdf_is_refused_in_time(answer: Answer, name: str) -> None:
    began = time.monotonic()
    found = await answer("a.pdf", HOSTILE_PDFS[name])

    assert time.monotonic() - began < 20
    assert isinstance(found, tuple)
    assert found[0] == "invalid_file"
    assert found[1].startswith("The file could not be parsed")


async def test_a_pdf_of_very_many_pages_is_read(answer: Answer) -> None:
    kids = b"3 0 R " * 50_000
    content = pdf_file(
        {
            1: CATALOG,
            2: b"<< /Type /Pages /Kids [%s] /Count 50000 >>" % kids,
            3: PAGE,
            4: pdf_stream(b"BT /F1 9 Tf 9 9 Td (x) Tj ET"),
            5: FONT,
        }
    )
    found = await answer("a.pdf", content)

    assert isinstance(found, ParsedDocument)
    assert len(found.pages) == 50_000


# ---- all of them -------------------------------------------------------------------------------------------------------------------

HONEST = {
    "a.pdf": pdf_document(["One page of text", "and another"]),
    "a.docx": docx_document(["One", "two"], table=[["a", "b"]]),
    "a.pptx": pptx_document(["One", "two"], notes=["note"]),
    "a.doc": doc_document(["One", "two"]),
    "a.html": html_document("Title", ["One", "two"]),
}


@pytest.mark.parametrize("filename", HONEST)
async def test_damaged_documents_end_in_text_or_in_a_refusal(answer: Answer, filename: str) -> None:
    chance = random.Random(filename)
    honest = HONEST[filename]
    for _ in range(40):
        content = bytearray(honest)
        for _ in range(chance.choice([1, 5, 50])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        found = await answer(filename, bytes(content))
        assert isinstance(found, ParsedDocument) or found[1].startswith("The file could not be parsed")


@pytest.mark.parametrize("filename", HONEST)
@pytest.mark.parametrize("content", [b"\0" * 100_000, bytes(range(256)) * 100, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\xff" * 5000])
async def test_what_is_not_of_its_type_ends_in_text_or_in_a_refusal(answer: Answer, filename: str, content: bytes) -> None:
    found = await answer(filename, content)

    assert isinstance(found, ParsedDocument) or found[1].startswith("The file could not be parsed")


async def test_the_server_goes_on_while_a_large_file_is_parsed_and_does_not_grow(answer: Answer) -> None:
    await answer("a.txt", b"warm")
    content = docx_of(PARAGRAPH.format("word " * 20) * 40_000)
    before = psutil.Process().memory_info().rss
    pauses: list[float] = []

    async def beat() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic() - began)

    beating = asyncio.create_task(beat())
    found = await answer("a.docx", content)
    beating.cancel()

    assert isinstance(found, ParsedDocument)
    assert len(found.text) > 4_000_000
    assert len(pauses) > 20
    assert max(pauses) < 0.3
    assert psutil.Process().memory_info().rss - before < 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the memory of a process")
async def test_what_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"a" * (60 * MIB))
    found: list[object] = []
    for memory_bytes_max in (64 * MIB, 2048 * MIB):
        parser = ParserProcesses(Settings(parse_memory_bytes_max=memory_bytes_max, file_tokens_max=100_000_000))
        try:
            found.append(len((await parser.parse(str(path), "a.txt")).text))
        except ParseFailed as exc:
            found.append((exc.code, exc.message))
        await parser.close()

    assert found == [TOO_LARGE, 60 * MIB]
