"""What every parser behind `vector_stores/parsers/base.DocumentParser` has to hold: types of files, text, pages and refusals."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import docx
import pptx
import psutil
import pytest
import pytest_asyncio
from docx.oxml import parse_xml
from pptx.util import Inches

from mini_assistant.errors import BackendError
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.parsers.base import DocumentParser, ParsedDocument, ParseFailed
from mini_assistant.vector_stores.parsers.process import ParserProcesses
from tests.documents import doc_document, docx_document, html_document, ole_file, pdf_document, pptx_document

Parse = Callable[[str, bytes], Awaitable[ParsedDocument]]
IMPLEMENTATIONS: dict[str, Callable[[Settings], DocumentParser]] = {"processes": ParserProcesses}

LEGAL = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest_asyncio.fixture(params=IMPLEMENTATIONS, scope="module", loop_scope="module")
async def parser(request: pytest.FixtureRequest) -> AsyncIterator[DocumentParser]:
    parser = IMPLEMENTATIONS[request.param](Settings())
    yield parser
    await parser.close()


@pytest.fixture
def parse(parser: DocumentParser, tmp_path: Path) -> Parse:
    async def parse_it(filename: str, content: bytes) -> ParsedDocument:
        path = tmp_path / "blob"
        path.write_bytes(content)
        return await parser.parse(str(path), filename)

    return parse_it


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def refusal(parse: Parse, filename: str, content: bytes) -> tuple[str, str]:
    with pytest.raises(ParseFailed) as caught:
        await parse(filename, content)
    return caught.value.code, caught.value.message


# ---- types -------------------------------------------------------------------------------------------------------------------------

TEXT_EXTENSIONS = "c cpp cs css go java js json md php py rb sh tex ts txt".split()  # noqa: SIM905


@pytest.mark.parametrize("extension", TEXT_EXTENSIONS)
async def test_text_and_code_are_taken_as_they_are(parse: Parse, extension: str) -> None:
    text = '{"a": [1, 2]}  # <b>not markup</b>\n\n\tindented é\n'

    assert await parse(f"file.{extension}", text.encode()) == ParsedDocument(text=text)


@pytest.mark.parametrize(
    "filename", ["a.TXT", "a.b.Txt", "..txt", "with space .txt ", "ünïcode‮.txt", "a/../../b.txt", "a\nb.txt", "-rf.txt", ".txt"]
)
async def test_only_the_extension_of_the_name_matters(parse: Parse, filename: str) -> None:
    assert (await parse(filename, b"text")).text == "text"


@pytest.mark.parametrize(
    "filename", ["a.csv", "a.xlsx", "a.png", "a", "", ".", "txt", "a.txt.exe", "a.docm", "a.txt/", "a.pdf\0.exe", "a.xml"]
)
async def test_other_types_are_refused(parse: Parse, filename: str) -> None:
    assert await refusal(parse, filename, b"text") == ("unsupported_file", "The file type is not supported.")


# ---- encodings ---------------------------------------------------------------------------------------------------------------------

MIXED = "Grüße, 日本語, 🎉.\nSecond line\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
async def test_unicode_is_read_in_each_of_its_encodings(parse: Parse, encoding: str) -> None:
    assert (await parse("a.txt", MIXED.encode(encoding))).text == MIXED


async def test_big_endian_text_with_a_mark_is_read(parse: Parse) -> None:
    assert (await parse("a.txt", b"\xfe\xff" + MIXED.encode("utf-16-be"))).text == MIXED


async def test_western_european_text_is_read_too(parse: Parse) -> None:
    text = "Die Straße ist schön, sagt der Bürgermeister. “Très bien”, répond “l'élève” français. 100 €"

    assert (await parse("a.txt", text.encode("cp1252"))).text == text


@pytest.mark.parametrize(
    "content",
    [
        "Привет, мир. Это обычный текст.".encode("cp1251"),
        "これは日本語のテキストです。".encode("shift_jis"),
        "a text in English, with 日本語のテキスト in it, and so on and so on and so on".encode("euc-jp"),
        "text".encode("utf-32"),
        b"\x00\x01\x02\x03" * 100,
        b"text with a \xff and a \x00",
        bytes(range(256)),
    ],
    ids=["cp1251", "shift_jis", "euc-jp", "utf-32", "binary", "zero", "all-bytes"],
)
async def test_other_encodings_are_refused(parse: Parse, content: bytes) -> None:
    code, message = await refusal(parse, "a.txt", content)

    assert (code, message) == ("invalid_file", "The file could not be parsed. Text must be encoded in UTF-8, UTF-16 or ASCII.")


@pytest.mark.parametrize("content", [b"", b" \n\t ", b"\xef\xbb\xbf"])
async def test_a_file_without_text_is_refused(parse: Parse, content: bytes) -> None:
    assert await refusal(parse, "a.txt", content) == ("invalid_file", "The file could not be parsed. It has no text.")


async def test_ends_of_lines_become_one_character(parse: Parse) -> None:
    assert (await parse("a.txt", b"a\r\nb\rc\n\nd")).text == "a\nb\nc\n\nd"


# ---- HTML --------------------------------------------------------------------------------------------------------------------------


async def test_html_is_read_without_scripts_and_styles(parse: Parse) -> None:
    document = await parse("a.html", html_document("The <title>", ["First & second.", "Third."]))

    assert document == ParsedDocument(text="The <title>\n\nFirst & second.\n\nThird.")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>one<p>two", "one\n\ntwo"),
        ("<b>bo</b>ld and <a href='https://example.com'>a link</a>", "bold and a link"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<ul><li>one</li><li><p>two</p></li></ul><p>after", "- one\n- two\n\nafter"),
        ("<ul><li>one<ul><li>inner</ul></ul>", "- one\n- inner"),
        ("<table><tr><th>h</th><td><p>x</p></td></tr><tr><td>1<td>2</table>", "h | x\n1 | 2"),
        ("<pre>def f():\n    pass</pre>", "def f():\n    pass"),
        ("&eacute; &lt;tag&gt; &#x1F389; &nosuch;", "é <tag> 🎉 &nosuch;"),
        ("<p>seen<svg><text>no</text></svg><noscript>no</noscript><!-- no --> too", "seen too"),
        ("<script>if (a < b) '<p>no</p>'</script><p>yes", "yes"),
        ("<img alt='A chart'><p>text", "A chart\n\ntext"),
        ("  many \n\t spaces  ", "many spaces"),
        ("<dl><dt>term<dd>meaning</dl>", "term\nmeaning"),
        ("<div><div>unclosed <i>markup", "unclosed markup"),
        ("</p></li></pre>stray</table>", "stray"),
    ],
)
async def test_html_keeps_its_structure(parse: Parse, markup: str, text: str) -> None:
    assert (await parse("a.html", markup.encode())).text == text


@pytest.mark.parametrize("charset", ["windows-1251", "shift_jis", "gb18030", "utf-8"])
async def test_html_may_name_its_encoding(parse: Parse, charset: str) -> None:
    word = {"windows-1251": "Привет", "utf-8": "Grüße 日本"}.get(charset, "漢字")
    page = f'<meta http-equiv="Content-Type" content="text/html; charset={charset}"><p>{word}</p>'

    assert (await parse("a.html", page.encode(charset))).text == word


async def test_html_that_names_a_strange_encoding_is_read_as_text(parse: Parse) -> None:
    assert (await parse("a.html", b"<meta charset=zip><p>text")).text == "text"


async def test_html_without_text_is_refused(parse: Parse) -> None:
    assert await refusal(parse, "a.html", b"<html><body><script>x</script></body></html>") == (
        "invalid_file",
        "The file could not be parsed. It has no text.",
    )


# ---- PDF ---------------------------------------------------------------------------------------------------------------------------


async def test_pdf_pages_are_kept_with_their_places(parse: Parse) -> None:
    document = await parse("a.pdf", pdf_document(["Grüße, 日本語 🎉\nsecond line", "", "third page"]))

    assert document.text == "Grüße, 日本語 🎉\nsecond line\n\nthird page"
    assert [(page.number, document.text[page.start : page.end]) for page in document.pages] == [
        (1, "Grüße, 日本語 🎉\nsecond line"),
        (3, "third page"),
    ]


async def test_pdf_that_is_protected_is_refused(parse: Parse) -> None:
    assert await refusal(parse, "a.pdf", pdf_document(["secret"], password="pw")) == (
        "invalid_file",
        "The file could not be parsed. It is protected by a password.",
    )


async def test_pdf_that_is_scanned_is_refused(parse: Parse) -> None:
    assert await refusal(parse, "a.pdf", pdf_document(["", ""])) == (
        "invalid_file",
        "The file could not be parsed. It has no text; it is probably scanned.",
    )


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7\n", b"not a pdf", pdf_document(["x"])[:200]])
async def test_pdf_that_is_broken_is_refused(parse: Parse, content: bytes) -> None:
    assert await refusal(parse, "a.pdf", content) == ("invalid_file", "The file could not be parsed. It is not a valid PDF document.")


async def test_pdf_without_a_table_of_its_objects_is_still_read(parse: Parse) -> None:
    content = pdf_document(["text"])

    assert (await parse("a.pdf", content[: content.index(b"xref\n")] + b"trailer << /Root 1 0 R >>")).text == "text"


# ---- DOCX --------------------------------------------------------------------------------------------------------------------------


async def test_docx_is_read_in_reading_order(parse: Parse) -> None:
    content = docx_document(["First.", "Second & <third>.\nnew line"], heading="Heading", table=[["a", "b"], ["c", "d"]])

    assert await parse("a.docx", content) == ParsedDocument(text="Heading\n\nFirst.\n\nSecond & <third>.\nnew line\n\na | b\nc | d")


async def test_docx_lists_headers_and_footers_are_read(parse: Parse) -> None:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "The header"
    document.sections[0].footer.paragraphs[0].text = "The footer"
    document.add_paragraph("Intro")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Number")
    document.add_section().header.is_linked_to_previous = False
    document.sections[1].header.paragraphs[0].text = "The header"
    document.add_paragraph("Outro")
    stream = io.BytesIO()
    document.save(stream)

    assert (await parse("a.docx", stream.getvalue())).text == "The header\n\nIntro\n\n- one\n- two\n\nOutro\n\nThe footer"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>", "new"),
        ("<w:p><w:moveFrom><w:r><w:t>old</w:t></w:r></w:moveFrom><w:moveTo><w:r><w:t>new</w:t></w:r></w:moveTo></w:p>", "new"),
        ("<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>", "in a control"),
        ("<w:p><w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink><w:r><w:tab/><w:t>x</w:t><w:noBreakHyphen/></w:r></w:p>", "link\tx-"),
        ("<w:p><w:r><w:instrText>PAGE</w:instrText><w:t>3</w:t></w:r></w:p>", "3"),
        (
            '<w:p><w:r><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
            "<mc:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p></w:txbxContent></mc:Choice>"
            "<mc:Fallback><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p></w:txbxContent></mc:Fallback>"
            "</mc:AlternateContent></w:r><w:r><w:t>around</w:t></w:r></w:p>",
            "box\n\naround",
        ),
        (
            "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p><w:tbl><w:tr><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc>"
            "<w:tc><w:p><w:r><w:t>c</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:tc><w:tc><w:p><w:r><w:t>d</w:t></w:r></w:p></w:tc></w:tr></w:tbl>",
            "a b | c | d",
        ),
        ("<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>", "a\nb"),
    ],
    ids=["tracked", "moved", "control", "link", "field", "text-box", "nested-table", "frame"],
)
async def test_docx_shows_what_word_shows(parse: Parse, body: str, text: str) -> None:
    document = docx.Document()
    holder = parse_xml(f"<w:body {LEGAL}>{body}</w:body>")
    for place, element in enumerate(list(holder)):
        document.element.body.insert(place, element)
    stream = io.BytesIO()
    document.save(stream)

    assert (await parse("a.docx", stream.getvalue())).text == text


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", docx_document(["x"])[:2000], pptx_document(["x"])[:-30]])
@pytest.mark.parametrize("filename", ["a.docx", "a.pptx"])
async def test_office_files_that_are_broken_are_refused(parse: Parse, filename: str, content: bytes) -> None:
    program = "Word" if filename == "a.docx" else "PowerPoint"

    assert await refusal(parse, filename, content) == (
        "invalid_file",
        f"The file could not be parsed. It is not a valid {program} document.",
    )


async def test_office_files_that_are_protected_are_refused(parse: Parse) -> None:
    code, message = await refusal(parse, "a.docx", ole_file({"EncryptedPackage": b"x", "EncryptionInfo": b"x"}))

    assert code == "invalid_file"
    assert "protected by a password" in message


async def test_docx_without_text_is_refused(parse: Parse) -> None:
    assert (await refusal(parse, "a.docx", docx_document([""])))[1] == "The file could not be parsed. It has no text."


# ---- PPTX --------------------------------------------------------------------------------------------------------------------------


async def test_pptx_slides_are_pages_with_their_notes(parse: Parse) -> None:
    document = await parse("a.pptx", pptx_document(["One\nmore", "", "Three"], notes=["Say hello."]))

    assert document.text == "One\nmore\n\nSay hello.\n\nThree"
    assert [(page.number, document.text[page.start : page.end]) for page in document.pages] == [
        (1, "One\nmore\n\nSay hello."),
        (3, "Three"),
    ]


async def test_pptx_titles_tables_and_groups_are_read_in_the_order_of_the_slides(parse: Parse) -> None:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Title"
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(1), Inches(4), Inches(1)).table
    for row in range(2):
        for column in range(2):
            table.cell(row, column).text = f"{row}{column}"
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(3), Inches(2), Inches(1)).text_frame.text = "In a group"
    other = presentation.slides.add_slide(presentation.slide_layouts[6])
    other.shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1)).text_frame.text = "Shown first"
    order = presentation.slides._sldIdLst
    order.insert(0, order[1])
    stream = io.BytesIO()
    presentation.save(stream)
    document = await parse("a.pptx", stream.getvalue())

    assert document.text == "Shown first\n\nTitle\n\n00 | 01\n10 | 11\n\nIn a group"
    assert [page.number for page in document.pages] == [1, 2]


# ---- DOC ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paragraphs", [["First.", "Sécond “quoted” \u2013 dash."], ["日本語", "🎉 party", "x"], ["long " * 2000, "end"]])
async def test_legacy_word_is_read(parse: Parse, paragraphs: list[str]) -> None:
    document = await parse("a.doc", doc_document(paragraphs, footnotes=["A footnote."]))

    assert document.text == "\n\n".join([paragraph.rstrip() for paragraph in paragraphs] + ["A footnote."])


async def test_legacy_word_hides_fields_and_shows_tables(parse: Parse) -> None:
    field = 'see \x13 HYPERLINK "https://example.com" \x14the \x13 PAGE \x14page\x15\x15 for\x0bmore'
    document = await parse("a.doc", doc_document([field, "A\x07B\x07\x07C\x07D\x07\x07", "non\x1ebreaking\x01\x08"]))

    assert document.text == "see the page for\nmore\n\nA | B\nC | D\n\nnon-breaking"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (doc_document(["x"], is_encrypted=True), "protected by a password"),
        (doc_document(["x"], ident=0xA5DC), "a version of Word before 97"),
        (doc_document(["x"], ident=0x1234), "not a Word document of Word 97 or later"),
        (ole_file({"Workbook": b"x"}), "not a Word document of Word 97 or later"),
        (b"{\\rtf1 text}", "not a Word document of Word 97 or later"),
        (b"", "not a Word document of Word 97 or later"),
        (doc_document(["x"])[:3000], "not a Word document of Word 97 or later"),
    ],
)
async def test_legacy_word_that_cannot_be_read_is_refused_with_the_reason(parse: Parse, content: bytes, reason: str) -> None:
    code, message = await refusal(parse, "a.doc", content)

    assert code == "invalid_file"
    assert reason in message


async def test_a_docx_that_is_named_doc_is_read(parse: Parse) -> None:
    assert (await parse("a.doc", docx_document(["text"]))).text == "text"


# ---- processes ---------------------------------------------------------------------------------------------------------------------

PROGRAM = "mini_assistant.vector_stores.parsers.program"


def programs() -> list[psutil.Process]:
    """The programs that this process has started, zombies included."""
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE or PROGRAM in child.cmdline()]


@pytest_asyncio.fixture(loop_scope="module")
async def own(tmp_path: Path) -> AsyncIterator[tuple[ParserProcesses, str]]:
    """A parser of the test's own, with a file of text."""
    before = programs()
    parser = ParserProcesses(Settings(ingest_concurrency_max=2))
    path = tmp_path / "blob"
    path.write_bytes(b"text")
    yield parser, str(path)
    await parser.close()
    assert programs() == before


async def test_files_share_a_program_and_as_many_run_as_are_allowed(own: tuple[ParserProcesses, str]) -> None:
    parser, path = own
    before = programs()
    for _ in range(5):
        await parser.parse(path, "a.txt")
    assert len(programs()) == len(before) + 1

    await asyncio.gather(*(parser.parse(path, "a.txt") for _ in range(12)))
    assert len(programs()) == len(before) + 2


async def test_a_program_that_was_killed_while_idle_is_replaced(own: tuple[ParserProcesses, str]) -> None:
    parser, path = own
    before = programs()
    await parser.parse(path, "a.txt")
    (program,) = [program for program in programs() if program not in before]
    program.kill()

    assert (await parser.parse(path, "a.txt")).text == "text"


async def test_no_secret_reaches_the_program(own: tuple[ParserProcesses, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    parser, path = own
    before = programs()
    await parser.parse(path, "a.txt")
    (program,) = [program for program in programs() if program not in before]

    assert "OPENAI_API_KEY" not in program.environ()
    if sys.platform == "linux":
        assert program.num_fds() <= 4  # its three pipes; and a moment's file
        assert os.getsid(program.pid) == program.pid


async def test_the_server_loads_no_library_that_parses() -> None:
    names = "pypdfium2 olefile lxml docx pptx PIL html.parser zipfile pyexpat".split()  # noqa: SIM905
    code = (
        "import sys, mini_assistant.vector_stores.parsers.process, mini_assistant.vector_stores.chunking\n"
        f"print([name for name in {names[:6]} if name in sys.modules])"
    )
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stdout.strip() == "[]"


async def test_a_cancelled_parse_ends_its_process(own: tuple[ParserProcesses, str], tmp_path: Path) -> None:
    parser, path = own
    await parser.parse(path, "a.txt")
    endless = tmp_path / "endless"
    os.mkfifo(endless)  # opening it waits for a writer
    parsing = asyncio.create_task(parser.parse(str(endless), "a.html"))
    await _until(lambda: any(program.children() for program in programs()))
    forks = [fork for program in programs() for fork in program.children()]
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing

    await _until(lambda: not any(fork.is_running() for fork in forks))
    assert (await parser.parse(path, "a.txt")).text == "text"


async def test_closing_breaks_off_what_is_parsed(own: tuple[ParserProcesses, str], tmp_path: Path) -> None:
    parser, path = own
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    parsing = asyncio.create_task(parser.parse(str(endless), "a.html"))
    await _until(lambda: any(program.children() for program in programs()))
    await parser.close()

    with pytest.raises(BackendError, match="stopping"):
        await parsing
    with pytest.raises(BackendError, match="stopping"):
        await parser.parse(path, "a.txt")


async def test_a_program_that_cannot_start_is_not_the_fault_of_the_file(
    own: tuple[ParserProcesses, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser, path = own
    monkeypatch.setattr("mini_assistant.vector_stores.parsers.process._PROGRAM", "mini_assistant.no_such_program")

    with pytest.raises(BackendError, match="no_such_program"):
        await parser.parse(path, "a.txt")


async def test_a_fork_that_is_killed_fails_its_own_file_only(own: tuple[ParserProcesses, str], tmp_path: Path) -> None:
    parser, path = own
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    parsing = asyncio.create_task(parser.parse(str(endless), "a.html"))
    await _until(lambda: any(program.children() for program in programs()))
    for program in programs():
        for fork in program.children():
            fork.send_signal(signal.SIGSEGV)

    with pytest.raises(ParseFailed, match=r"The file could not be parsed\. It is damaged"):
        await parsing
    assert (await parser.parse(path, "a.txt")).text == "text"


async def _until(condition: Callable[[], bool]) -> None:
    """For what only another process knows, and tells nobody."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
