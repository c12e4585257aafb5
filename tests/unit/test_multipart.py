"""Multipart bodies: cut anywhere, in any order, with the names that real clients send."""

from collections.abc import Iterator
from typing import Any

import pytest

from mini_assistant.errors import InvalidRequest
from mini_assistant.files.schema import CreateFile, FileExpirationAfter, plain_filename
from mini_assistant.http.multipart import FORM_BYTES_MAX, MultipartForm

BOUNDARY = "x-7MA4YWxk"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
PURPOSE = ('name="purpose"', b"assistants")
FILE = ('name="file"; filename="a.txt"', b"one\r\ntwo\r\n--x-7MA4\r\n")


def body(*parts: tuple[str, bytes], end: str = "--\r\n") -> bytes:
    """A body of parts: the parameters of their disposition, and their bytes."""
    whole = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), d.encode(), c) for d, c in parts)
    return whole + f"--{BOUNDARY}{end}".encode()


def form(raw: bytes, *, content_type: str = CONTENT_TYPE, step: int = 1 << 30) -> MultipartForm:
    """The form whose body arrives in steps of so many bytes."""
    pieces: Iterator[bytes] = iter([raw[start : start + step] for start in range(0, len(raw), step)])

    async def receive() -> bytes | None:
        return next(pieces, None)

    return MultipartForm({b"content-type": content_type.encode()}, "file", receive)


async def read(form: MultipartForm) -> tuple[str | None, bytes, CreateFile]:
    await form.find_file()
    data = b"".join([piece async for piece in form.file_pieces()])
    return form.filename, data, await form.read_fields(CreateFile)


async def refusal(raw: bytes, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await read(form(raw, **options))
    return caught.value


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
async def test_it_does_not_matter_where_the_body_is_cut(step: int) -> None:
    expires = [('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"3600")]
    for parts in ([PURPOSE, *expires, FILE], [FILE, *expires, PURPOSE], [expires[1], FILE, PURPOSE, expires[0]]):
        filename, data, fields = await read(form(body(*parts), step=step))
        assert (filename, data) == ("a.txt", FILE[1])
        assert fields == CreateFile("assistants", FileExpirationAfter("created_at", 3600))


async def test_fields_before_the_file_are_known_before_its_bytes() -> None:
    early = form(body(PURPOSE, FILE), step=20)
    await early.find_file()
    assert early.fields == {"purpose": "assistants"}
    late = form(body(FILE, PURPOSE), step=20)
    await late.find_file()
    assert late.fields == {}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('filename="a.txt"', "a.txt"),
        ("filename=a.txt", "a.txt"),
        ('filename="你好.txt"', "你好.txt"),
        ('filename="a; b=c.txt"', "a; b=c.txt"),
        # Browsers and httpx.
        ('filename="say %22hi%22.txt"', 'say "hi".txt'),
        ('filename="100% a%20b.txt"', "100% a%20b.txt"),
        # curl.
        (r'filename="say \"hi\".txt"', 'say "hi".txt'),
        # aiohttp.
        ('filename="%E4%BD%A0%E5%A5%BD%20.txt"', "你好 .txt"),
        ('filename="%E4%BD.txt"', "%E4%BD.txt"),
        # .NET, requests.
        ("filename=\"=?utf-8?B?5L2g?=\"; filename*=utf-8''%E4%BD%A0.txt", "你.txt"),
        ("filename*=UTF-8'en'%e2%82%ac%20rates.txt; filename=\"EURO.txt\"", "€ rates.txt"),
        ("filename*=iso-8859-1''%A3.txt", "£.txt"),
        # Folders are the client's own business.
        (r'filename="C:\fakepath\new.txt"', "new.txt"),
        ('filename="../../etc/passwd"', "passwd"),
        ('filename="/"', "file"),
        ('filename=".."', "file"),
        ('filename=""', "file"),
        ("x=y", "file"),
        ('filename="a\tb\x7f.txt"', "ab.txt"),
        ('filename="' + "\\" * 4000, "file"),
    ],
)
async def test_names_of_files(written: str, name: str) -> None:
    found, _, _ = await read(form(body(PURPOSE, (f'name="file"; {written}', b"x"))))
    assert plain_filename(found or "") == name


async def test_a_long_name_is_refused() -> None:
    assert plain_filename("é" * 512) == "é" * 512
    with pytest.raises(InvalidRequest, match="maximum length 512, but got a string with length 513"):
        plain_filename("é" * 513)


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([PURPOSE], "file", "missing_required_parameter"),
        ([], "file", "missing_required_parameter"),
        ([FILE], "purpose", "missing_required_parameter"),
        ([FILE, PURPOSE, ('name="colour"', b"blue")], "colour", "unknown_parameter"),
        ([FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")], "expires_after.anchor", "missing_required_parameter"),
        (
            [FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"3599")],
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            [FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"2592001")],
            "expires_after.seconds",
            "integer_above_max_value",
        ),
        (
            [FILE, PURPOSE, ('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"soon")],
            "expires_after.seconds",
            "invalid_type",
        ),
        ([FILE, PURPOSE, ('name="expires_after"', b"never")], "expires_after", "invalid_type"),
        ([FILE, PURPOSE, FILE], "file", "invalid_value"),
        ([FILE, ('name="purpose"', b"\xff")], None, "invalid_multipart"),
        ([FILE, ('nome="purpose"', b"x")], None, "invalid_multipart"),
        ([FILE, ('name="purpose"', b"x" * FORM_BYTES_MAX)], None, "invalid_multipart"),
        ([FILE, *[('name="p"', b"")] * 6000], None, "invalid_multipart"),
    ],
)
async def test_what_is_refused(parts: list[tuple[str, bytes]], param: str | None, code: str | None) -> None:
    fault = await refusal(body(*parts), step=1000)
    assert (fault.param, fault.code) == (param, code)


@pytest.mark.parametrize("end", ["", "-", "x"])
async def test_a_body_without_its_last_boundary_is_refused(end: str) -> None:
    assert "multipart body" in (await refusal(body(PURPOSE, FILE, end=end))).message
    assert "multipart body" in (await refusal(body(PURPOSE, FILE)[:-30])).message


@pytest.mark.parametrize("raw", [b"no form at all", b"--wrong\r\n", b"--" + BOUNDARY.encode() + b"\r\nbad header\r\n\r\nx"])
async def test_what_is_no_form_is_refused(raw: bytes) -> None:
    assert (await refusal(raw)).code in ("invalid_multipart", "missing_required_parameter")


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("application/json", "invalid_content_type"),
        ("", "invalid_content_type"),
        ("multipart/form-data", "invalid_multipart"),
        ("multipart/form-data; boundary=", "invalid_multipart"),
        ("multipart/form-data; boundary=" + "x" * 201, "invalid_multipart"),
    ],
)
async def test_a_wrong_content_type_is_refused(content_type: str, code: str) -> None:
    assert (await refusal(body(PURPOSE, FILE), content_type=content_type)).code == code


async def test_what_stands_before_and_behind_is_bounded_too() -> None:
    assert (await refusal(body(PURPOSE, FILE) + b"x" * (FORM_BYTES_MAX + 1), step=1000)).code == "invalid_multipart"
    assert (await refusal(b"\r\n" * FORM_BYTES_MAX, step=1000)).code == "invalid_multipart"
    quoted = CONTENT_TYPE.replace(BOUNDARY, f'"{BOUNDARY}"')
    assert (await read(form(body(PURPOSE, FILE) + b"\r\n", content_type=quoted)))[1] == FILE[1]
