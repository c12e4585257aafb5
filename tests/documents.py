"""Real documents for tests, small and deterministic: each is what a program would write, not a stand-in.

PDF and DOC are written by hand here; DOCX and PPTX by python-docx and python-pptx, which the server itself does not use.
"""

import hashlib
import html
import io
import struct
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

import docx
import pptx
from pptx.util import Inches

_LINE_CHARACTERS = 90
_LEADING = 12
_MARGIN = 50


# ---- PDF ---------------------------------------------------------------------------------------------------------------------------


def pdf_document(pages: Sequence[str], *, password: str | None = None) -> bytes:
    """A PDF with a page for each text; any Unicode. Long lines are wrapped. An empty text makes a page without any.

    password: without it the document cannot be opened; None for an open one.
    """
    characters = {character: number for number, character in enumerate(sorted({c for page in pages for c in page} - {"\n"}), start=1)}
    page_numbers = [6 + 2 * place for place in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in page_numbers)
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type0 /BaseFont /Helvetica /Encoding /Identity-H /DescendantFonts [4 0 R] /ToUnicode 5 0 R >>",
        4: b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Helvetica /DW 500 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>",
        5: pdf_stream(_to_unicode(characters)),
    }
    for number, page in zip(page_numbers, pages, strict=True):
        lines = [part for line in page.split("\n") for part in textwrap.wrap(line, _LINE_CHARACTERS) or [""]]
        height = max(842, 2 * _MARGIN + _LEADING * len(lines))
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 {height}] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {number + 1} 0 R >>"
        ).encode()
        objects[number + 1] = pdf_stream(_page_content(lines, characters, height))
    return pdf_file(objects, password)


def _page_content(lines: Sequence[str], characters: dict[str, int], height: int) -> bytes:
    if not any(lines):
        return b"0 0 100 100 re f"
    shown = "\n".join(f"<{''.join(f'{characters[c]:04x}' for c in line)}> Tj T*" if line else "T*" for line in lines)
    return f"BT /F1 10 Tf {_LEADING} TL {_MARGIN} {height - _MARGIN} Td\n{shown}\nET".encode()


def _to_unicode(characters: dict[str, int]) -> bytes:
    entries = [f"<{number:04x}> <{character.encode('utf-16-be').hex()}>" for character, number in characters.items()]
    blocks = [entries[start : start + 100] for start in range(0, len(entries), 100)]
    body = "\n".join(f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar" for block in blocks)
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n/CMapName /Test def\n/CMapType 2 def\n"
        f"1 begincodespacerange\n<0000> <ffff>\nendcodespacerange\n{body}\nendcmap\nend\nend"
    ).encode()


def pdf_stream(content: bytes) -> tuple[bytes, bytes]:
    """An object with a stream."""
    return b"<< /Length %d >>" % len(content), content


def pdf_file(objects: dict[int, bytes | tuple[bytes, bytes]], password: str | None = None) -> bytes:
    """A PDF of these objects, by number from 1 without a gap; a pair is a dictionary and a stream. The first is the catalog."""
    trailer = f"/Size {max(objects) + 2} /Root 1 0 R"
    key: bytes | None = None
    if password is not None:
        file_id = hashlib.md5(b"a file id").digest()
        owner = _rc4(hashlib.md5(_padded(password)).digest()[:5], _padded(password))
        key = hashlib.md5(_padded(password) + owner + struct.pack("<i", -4) + file_id).digest()[:5]
        user = _rc4(key, _padded(""))
        encryption = max(objects) + 1
        objects = {**objects, encryption: f"<< /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P -4 >>".encode()}
        trailer += f" /Encrypt {encryption} 0 R /ID [<{file_id.hex()}> <{file_id.hex()}>]"
    written = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets: list[int] = []
    for number, body in sorted(objects.items()):
        offsets.append(len(written))
        if isinstance(body, tuple):
            content = body[1] if key is None else _rc4(hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[:10], body[1])
            body = body[0] + b"\nstream\n" + content + b"\nendstream"
        written += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    start = len(written)
    written += f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(written)


_PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def _padded(password: str) -> bytes:
    return (password.encode() + _PADDING)[:32]


def _rc4(key: bytes, content: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    out = bytearray()
    for byte in content:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


# ---- Office ------------------------------------------------------------------------------------------------------------------------


def docx_document(paragraphs: Sequence[str], *, heading: str | None = None, table: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word document: the heading, the paragraphs, and the table after them."""
    document = docx.Document()
    document.core_properties.created = document.core_properties.modified = datetime(2024, 1, 1, tzinfo=UTC)
    if heading is not None:
        document.add_heading(heading, level=1)
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if table:
        grid = document.add_table(rows=0, cols=len(table[0]))
        for row in table:
            for cell, text in zip(grid.add_row().cells, row, strict=True):
                cell.text = text
    return _saved(document)


def pptx_document(slides: Sequence[str], *, notes: Sequence[str] = ()) -> bytes:
    """A presentation with a text box for each slide. notes: of the first slides."""
    presentation = pptx.Presentation()
    for place, text in enumerate(slides):
        slide = presentation.slides.add_slide(presentation.slide_layouts[6])
        box = slide.shapes.add_textbox(Inches(1), Inches(1), Inches(8), Inches(5))
        box.text_frame.text = text
        if place < len(notes):
            slide.notes_slide.notes_text_frame.text = notes[place]
    return _saved(presentation)


def _saved(document: object) -> bytes:
    stream = io.BytesIO()
    document.save(stream)  # type: ignore[attr-defined]
    return stream.getvalue()


def html_document(title: str, paragraphs: Sequence[str]) -> bytes:
    """A page with its title as a heading too, a style and a script that are no text of it, and the paragraphs."""
    body = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
    return (
        f"<!DOCTYPE html>\n<html><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<style>p { color: red }</style><script>if (1 < 2) { document.write('<p>written</p>') }</script></head>\n"
        f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode()


# ---- Word 97 -----------------------------------------------------------------------------------------------------------------------

_SECTOR = 512
_END_OF_CHAIN, _FAT_SECTOR, _FREE = 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF
_FIB_BYTES = 1024


def doc_document(paragraphs: Sequence[str], *, footnotes: Sequence[str] = (), is_encrypted: bool = False, ident: int = 0xA5EC) -> bytes:
    """A Word 97 document. Its text lies in two pieces, as after an edit: half of it in cp1252 when that can be, the rest in UTF-16.

    ident: the first two bytes; 0xA5DC is that of Word 95.
    """
    text = "".join(f"{paragraph}\r" for paragraph in paragraphs)
    notes = "".join(f"{note}\r" for note in footnotes)
    whole = text + notes
    half = len(whole) // 2
    pieces = [whole[:half], whole[half:]]
    content = bytearray(_FIB_BYTES)
    table = bytearray(struct.pack("<I", 0))
    descriptors = bytearray()
    units = 0
    for piece in pieces:
        offset = len(content)
        try:
            encoded, position = piece.encode("cp1252"), (offset * 2) | 0x40000000
        except UnicodeEncodeError:
            encoded, position = piece.encode("utf-16-le"), offset
        content += encoded
        units += len(piece.encode("utf-16-le")) // 2
        table += struct.pack("<I", units)
        descriptors += struct.pack("<HIH", 0, position, 0)
    plc = bytes(table + descriptors)
    clx = b"\x01\x02\x00\xaa\xbb" + b"\x02" + struct.pack("<I", len(plc)) + plc
    struct.pack_into("<HH", content, 0, ident, 0xC1)
    struct.pack_into("<H", content, 0x0A, 0x0200 | (0x0100 if is_encrypted else 0))
    struct.pack_into("<ii", content, 0x4C, _utf16_units(text), _utf16_units(notes))
    struct.pack_into("<II", content, 0x1A2, 16, len(clx))
    return ole_file({"WordDocument": bytes(content), "1Table": bytes(16) + clx})


def _utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def ole_file(streams: dict[str, bytes]) -> bytes:
    """A compound file with these streams; each is padded, so that none is a small one."""
    sectors: list[bytes] = []
    fat: list[int] = []
    starts: dict[str, tuple[int, int]] = {}
    for name, stream in streams.items():
        padded = stream.ljust(max(4096, -(-len(stream) // _SECTOR) * _SECTOR), b"\0")
        starts[name] = (len(sectors), len(padded))
        count = len(padded) // _SECTOR
        fat += [*range(len(sectors) + 1, len(sectors) + count), _END_OF_CHAIN]
        sectors += [padded[place : place + _SECTOR] for place in range(0, len(padded), _SECTOR)]
    entries = [_ole_entry("Root Entry", 5, _END_OF_CHAIN, 0, child=1)]
    names = sorted(streams, key=lambda name: (len(name), name.upper()))
    for place, name in enumerate(names, start=1):
        entries.append(_ole_entry(name, 2, *starts[name], right=place + 1 if place < len(names) else _FREE))
    directory = b"".join(entries)
    directory = directory.ljust(-(-len(directory) // _SECTOR) * _SECTOR, b"\0")
    directory_start = len(sectors)
    count = len(directory) // _SECTOR
    fat += [*range(directory_start + 1, directory_start + count), _END_OF_CHAIN]
    sectors += [directory[place : place + _SECTOR] for place in range(0, len(directory), _SECTOR)]
    fat_count = 1
    while fat_count * (_SECTOR // 4) < len(fat) + fat_count:
        fat_count += 1
    fat_start = len(sectors)
    fat += [_FAT_SECTOR] * fat_count
    fat += [_FREE] * (fat_count * (_SECTOR // 4) - len(fat))
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIII",
        *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6),
        *(0, fat_count, directory_start, 0, 4096, _END_OF_CHAIN, 0, _END_OF_CHAIN, 0),
    )
    places = [*range(fat_start, fat_start + fat_count)]
    header += struct.pack("<109I", *places, *[_FREE] * (109 - fat_count))
    return header + b"".join(sectors) + struct.pack(f"<{len(fat)}I", *fat)


def _ole_entry(name: str, kind: int, start: int, size: int, *, right: int = _FREE, child: int = _FREE) -> bytes:
    encoded = name.encode("utf-16-le") + b"\0\0"
    head = struct.pack("<64sHBBIII16xI16xIQ", encoded, len(encoded), kind, 1, _FREE, right, child, 0, start, size)
    assert len(head) == 128
    return head
