"""Sends bytes of the blob store to one client: whole or in part, at the client's pace, and never more than a few pieces in memory.

A single range is served, several are answered with the whole (RFC 9110 allows both). What was sent is known by its hash: `ETag`,
`If-None-Match` and `If-Range` compare it.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from mini_assistant.errors import BlobMissing
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.http.error_response import ErrorBody, envelope
from mini_assistant.http.routing import Download
from mini_assistant.http.sse import Receive, Send, client_has_left

# A client that takes one of these in `stream_write_timeout_seconds` is slow and not stuck.
_SENT_BYTES = 64 * 1024
_RANGE = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Part(NamedTuple):
    """The bytes from `start` up to `end`, not included. Empty when `start` is not below `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class OpenedDownload:
    """An answer that is ready to be sent. pieces: its body, whose first piece has been read already."""

    status: int
    headers: list[tuple[bytes, bytes]]
    pieces: AsyncGenerator[bytes]


async def open_download(blobs: BlobStore, download: Download, request: Mapping[bytes, bytes]) -> OpenedDownload:
    """Decide what to send. request: the request's headers. Raises BlobMissing and StoreUnavailable."""
    etag = b'"%b"' % download.sha256.encode()
    headers = [(b"etag", etag), (b"accept-ranges", b"bytes"), (b"x-content-type-options", b"nosniff")]
    if _names(request.get(b"if-none-match", b""), etag):
        return OpenedDownload(304, headers, _pieces(b"", None, 0))
    part = wanted_part(request.get(b"range", b""), download.size_bytes) if request.get(b"if-range", etag) == etag else None
    if part is not None:
        if part.start >= part.end:
            return _not_satisfiable(headers, download.size_bytes)
        headers.append((b"content-range", b"bytes %d-%d/%d" % (part.start, part.end - 1, download.size_bytes)))
    status, (start, end) = (200, (0, download.size_bytes)) if part is None else (206, part)
    headers += [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % (end - start)),
        (b"content-disposition", content_disposition(download.filename)),
    ]
    rest = blobs.read(download.blob_key, start, end)
    first = await anext(rest, b"")
    return OpenedDownload(status, headers, _pieces(first, rest, end - start))


async def send_download(opened: OpenedDownload, receive: Receive, send: Send, timeout_seconds: float) -> bool:
    """Send the body until its end or until the client goes away. The response's headers have been sent.

    timeout_seconds: how long the client may take nothing. Returns False when it did: the connection is of no more use.
    Raises BlobMissing when there are fewer bytes than were promised.
    """
    leaving = asyncio.ensure_future(client_has_left(receive))
    try:
        async with contextlib.aclosing(opened.pieces) as pieces:
            async for piece in pieces:
                if leaving.done():
                    return True
                async with asyncio.timeout(timeout_seconds):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        return False
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    return True


async def _pieces(first: bytes, rest: AsyncIterator[bytes] | None, size_bytes: int) -> AsyncGenerator[bytes]:
    """`first` and what follows it, cut small. Raises BlobMissing when all together is less than `size_bytes`."""
    piece, left = first, size_bytes
    while piece:
        left -= len(piece)
        for start in range(0, len(piece), _SENT_BYTES):
            yield piece[start : start + _SENT_BYTES]
        piece = b"" if rest is None else await anext(rest, b"")
    if left > 0:
        raise BlobMissing(f"{left} bytes of a blob are missing at its end.")


def wanted_part(header: bytes, size_bytes: int) -> Part | None:
    """What a `Range` header asks for; None when it means nothing here, an empty part when there are no such bytes."""
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return Part(max(0, size_bytes - int(last)), size_bytes) if last else None
    if last and int(last) < int(first):
        return None
    return Part(int(first), min(size_bytes, int(last) + 1) if last else size_bytes)


def content_disposition(filename: str) -> bytes:
    """The header that names a download, in the plain form and, where that is not all, in the one of RFC 6266."""
    plain = re.sub(r"[^ !#-\[\]-~]|%", "_", filename)
    header = f'attachment; filename="{plain}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return header.encode()


def _names(header: bytes, etag: bytes) -> bool:
    """Whether an `If-None-Match` is about these bytes."""
    return header.strip() == b"*" or etag in [tag.strip().removeprefix(b"W/") for tag in header.split(b",")]


def _not_satisfiable(headers: list[tuple[bytes, bytes]], size_bytes: int) -> OpenedDownload:
    error = ErrorBody(
        message=f"The range is not satisfiable: the file has {size_bytes} bytes.",
        type="invalid_request_error",
        param="Range",
        code="range_not_satisfiable",
    )
    body = envelope(error, has_detail=True)
    headers += [
        (b"content-range", b"bytes */%d" % size_bytes),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    return OpenedDownload(416, headers, _pieces(body, None, len(body)))
