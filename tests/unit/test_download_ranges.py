"""What a `Range` header asks for, and how a download is named."""

import pytest

from mini_assistant.http.download import content_disposition, wanted_part


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=2-4", (2, 5)),
        (b"bytes=7-", (7, 10)),
        (b"bytes=7-99", (7, 10)),
        (b"bytes=-3", (7, 10)),
        (b"bytes=-99", (0, 10)),
    ],
)
def test_a_part(header: bytes, part: tuple[int, int]) -> None:
    assert wanted_part(header, 10) == part


@pytest.mark.parametrize("header", [b"", b"bytes=-", b"bytes=4-2", b"bytes=0-1,3-4", b"lines=0-1", b"bytes=a-b", b"bytes=0-" + b"9" * 30])
def test_what_means_nothing_is_the_whole(header: bytes) -> None:
    assert wanted_part(header, 10) is None


@pytest.mark.parametrize(("header", "size_bytes"), [(b"bytes=10-", 10), (b"bytes=10-20", 10), (b"bytes=-0", 10), (b"bytes=0-", 0)])
def test_bytes_that_are_not_there(header: bytes, size_bytes: int) -> None:
    part = wanted_part(header, size_bytes)
    assert part is not None
    assert part.start >= part.end


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ("你.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%E4%BD%A0.txt"),
        ('a"b\\c%41.txt', "attachment; filename=\"a_b_c_41.txt\"; filename*=UTF-8''a%22b%5Cc%2541.txt"),
        ("a\r\nx: y", "attachment; filename=\"a__x: y\"; filename*=UTF-8''a%0D%0Ax%3A%20y"),
    ],
)
def test_names_of_downloads(name: str, header: str) -> None:
    assert content_disposition(name) == header.encode()
